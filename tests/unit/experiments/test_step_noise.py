"""A scheduler that draws noise by itself: the same for a prompt in every run and batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from evaluation.datasets.interface import Prompt
from experiments.config.compose import build_cell
from experiments.sampling import sample as sampling
from experiments.sampling.pipelines import load_pipeline
from experiments.sampling.sample import sample
from experiments.sampling.step_noise import own_noise

PROMPTS = [Prompt(id=f"e{n}", text=f"a red circle {n}") for n in range(2)]


@pytest.fixture(scope="module")
def stochastic(zoo: Path) -> Any:
    """A flow pipeline that draws at every step, and how it is sampled."""
    words = [f"model.path={zoo / 'tiny_mmdit'}", "model.height=16", "model.width=16"]
    words += ["model.num_inference_steps=3", "model.call.max_sequence_length=24"]
    line = ["model=folder", *words[:-1], f"++{words[-1]}"]
    config = build_cell(line, method_name="segquant_a").model
    pipeline = load_pipeline(config, device=torch.device("cpu"))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, stochastic_sampling=True
    )
    return pipeline, config


def _images(stochastic: Any, prompts: list[Prompt], *, seed: int = 0) -> np.ndarray[Any, Any]:
    pipeline, config = stochastic
    return np.asarray(sample(pipeline, prompts, config=config, seed=seed))


def test_two_runs_are_equal_and_the_global_generator_is_as_it_was(stochastic: Any) -> None:
    torch.manual_seed(1)
    first = _images(stochastic, PROMPTS)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    torch.manual_seed(2)
    assert np.array_equal(_images(stochastic, PROMPTS), first)
    assert not np.array_equal(_images(stochastic, PROMPTS, seed=1), first)


def test_the_batch_does_not_decide(stochastic: Any) -> None:
    both = _images(stochastic, PROMPTS)
    apart = np.concatenate([_images(stochastic, [prompt]) for prompt in PROMPTS])
    assert np.abs(both - apart).max() < 1e-3


def test_without_it_no_two_runs_are_equal(stochastic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def nothing(*_: object, **__: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(sampling, "own_noise", nothing)
    first, second = (_images(stochastic, PROMPTS) for _ in range(2))
    assert not np.array_equal(first, second)


def test_the_scheduler_is_left_as_it_was(stochastic: Any) -> None:
    scheduler = stochastic[0].scheduler
    with own_noise(stochastic[0], ["a"], seed=0):
        assert "step" in vars(scheduler)
    assert "step" not in vars(scheduler)
    scheduler.step = instead = scheduler.step
    try:
        with own_noise(stochastic[0], ["a"], seed=0):
            assert scheduler.step is not instead
        assert scheduler.step is instead
    finally:
        del scheduler.step
