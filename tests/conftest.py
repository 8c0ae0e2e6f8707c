"""What the tests share: small pipelines, built once, and a way to call the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import micro

# The same examples in every run, so that a verdict can be had again. To look for new ones:
# pytest --hypothesis-profile=explore
settings.register_profile("repeatable", derandomize=True, max_examples=60, deadline=None)
settings.register_profile("explore", max_examples=3000, deadline=None)
settings.load_profile("repeatable")

FAMILIES = ("tiny_mmdit", "tiny_flux", "tiny_unet")
SETTINGS = (
    "model.height=16",
    "model.width=16",
    "model.num_inference_steps=3",
    "model.batch_size=4",
    "dataset.evaluation_prompts=6",
    "dataset.calibration_prompts=4",
    "metrics.teacher_forced_prompts=4",
    "metrics.bootstrap_resamples=200",
    "num_threads=1",
    "logger=none",
)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test leaves is found by the next run, or by the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained pipeline of each family, a PixArt-Sigma one and an evaluator."""
    root = tmp_path_factory.mktemp("zoo")
    for name in FAMILIES:
        micro.save_pipeline(name, root / name)
    micro.save_pixart(root / "pixart")
    micro.save_untrained_evaluator(root / "evaluator")
    return root


@dataclass
class Answer:
    """What one call of the command did."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(json.loads(self.out))


def assert_refused(answer: Answer, *words: str) -> None:
    """The request was wrong: one line says so, with these words."""
    assert answer.status == 2, answer.err
    lines = answer.err.strip().splitlines()
    assert len(lines) == 1, answer.err
    for word in words:
        assert word in lines[0]


@pytest.fixture
def segbench(capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Calls the command in this process."""
    from experiments.cli import main

    def call(*arguments: str) -> Answer:
        capfd.readouterr()
        try:
            status = main(arguments)
        except SystemExit as error:  # argparse
            status = int(error.code or 0)
        captured = capfd.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture
def small(zoo: Path) -> Callable[..., list[str]]:
    """Arguments of a run on one of the small pipelines that takes seconds."""

    def arguments(name: str, *more: str) -> list[str]:
        length = () if name in ("tiny_unet", "pixart") else ("model.call.max_sequence_length=24",)
        given = [f"model.path={zoo / name}", f"metrics.evaluator={zoo / 'evaluator'}"]
        return [*given, *SETTINGS, *length, *more]

    return arguments
