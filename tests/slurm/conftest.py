"""A real Slurm for the tests here: `make test-slurm` asks for it, a plain pytest does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evaluation.records import read_record, stable_view
from experiments.cli import main
from tests.conftest import SETTINGS, Answer
from tests.slurm.cluster import Cluster, wait_until

if not os.environ.get("SEGBENCH_SLURM"):
    collect_ignore_glob = ["test_*.py"]

SECONDS = 240  # generous: a wait that ends well never takes it
ON_SLURM = (
    "device=cpu",
    "cluster=slurm",
    "~cluster.stages.metrics",
    "cluster.jobs.cpus=1",
    "cluster.jobs.memory_gb=1",
    "cluster.jobs.timeout_minutes=30",
    "cluster.jobs.parallel=4",
)
# a cell whose images take long enough to be interrupted
SLOW = (
    "model.num_inference_steps=40",
    "model.batch_size=1",
    "dataset.evaluation_prompts=8",
    "dataset.calibration_prompts=2",
    "metrics.teacher_forced_prompts=2",
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """With accounting and preemption; every Slurm command of the session finds it."""
    with _running(Cluster(Path(f"/tmp/segbench-{os.getpid()}"))) as made:
        yield made


@pytest.fixture
def bare_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A second one without accounting, whose arrays have at most four jobs."""
    made = Cluster(Path(f"/tmp/segbench-b{os.getpid()}"), accounting=False, max_array_size=5)
    monkeypatch.setenv("SLURM_CONF", "")
    with _running(made):
        yield made


class _running:  # noqa: N801 - used as a context manager
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.before = os.environ.get("SLURM_CONF")

    def __enter__(self) -> Cluster:
        self.cluster.up()
        os.environ |= self.cluster.environment
        return self.cluster

    def __exit__(self, *_: object) -> None:
        self.cluster.down()
        shutil.rmtree(self.cluster.root, ignore_errors=True)
        if self.before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = self.before


@dataclass
class Sweep:
    """A command line on a store, and what it left there."""

    segbench: Callable[..., Answer]
    arguments: list[str]
    out: Path

    def run(self, *more: str, status: int = 0) -> Answer:
        return self.call("run", *more, status=status)

    def call(self, verb: str, *more: str, status: int = 0) -> Answer:
        answer = self.ask(verb, *more)
        assert answer.status == status, answer.err + answer.out
        return answer

    def ask(self, verb: str, *more: str) -> Answer:
        return self.segbench(verb, "-m", *self.arguments, f"out={self.out}", *more)

    def views(self) -> dict[tuple[str, str, str], Any]:
        return read_views(self.out)

    def jobs(self) -> list[str]:
        """The ids of all arrays that were submitted, in order."""
        path = self.out / "jobs" / "ledger.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line["job"] for line in lines if "job" in line]

    def pictures(self) -> list[Path]:
        """Images of stages that are being made."""
        return sorted((self.out / "stages" / "images").glob("*.partial/*.png"))

    def maker(self) -> int:
        """The process that makes images now."""
        (path,) = (self.out / "stages" / "images").glob("*.partial/.attempts.jsonl")
        return int(json.loads(path.read_text().splitlines()[-1])["pid"])

    def freeze(self) -> int:
        """Stops the process that makes images, so that it is still at work on any machine."""
        self.wait_for_pictures()
        process = self.maker()
        os.kill(process, signal.SIGSTOP)
        return process

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """Per finished stage who began it, from its manifest."""
        found = {}
        for path in (self.out / "stages").glob("*/*/manifest.json"):
            if ".damaged" not in str(path):
                content = json.loads(path.read_text())
                found[f"{content['kind']}/{path.parent.name}"] = content["attempts"]
        return found

    def wait_for_pictures(self, count: int = 2) -> None:
        wait_until(lambda: len(self.pictures()) >= count, seconds=SECONDS, poll_seconds=0.02)


def read_views(out: Path) -> dict[tuple[str, str, str], Any]:
    """The comparable part of every record, by model, method and bits."""
    records = [read_record(path) for path in (out / "cells").glob("*/record.json")]
    return {(r.model, r.method, r.bits): stable_view(r) for r in records}


def local(arguments: list[str]) -> list[str]:
    """The same request for this process."""
    return [a for a in arguments if not a.lstrip("~").startswith("cluster")]


@pytest.fixture(scope="session")
def one_slow_cell(zoo: Path) -> list[str]:
    """The request of the fault tests: one cell on a model whose shared stages are there."""
    folder = [f"model.path={zoo / 'tiny_unet'}", f"metrics.evaluator={zoo / 'evaluator'}"]
    settings = [s for s in SETTINGS if s.split("=")[0] not in {x.split("=")[0] for x in SLOW}]
    return [*folder, *settings, *SLOW, "method=rtn", "bits=w8a8_int8", *ON_SLURM]


@dataclass
class Prepared:
    """A store with the shared stages, and what the cell must come to."""

    out: Path
    views: dict[tuple[str, str, str], Any]


@pytest.fixture(scope="session")
def prepared(one_slow_cell: list[str], tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The cell run in this process; its own stages and record are taken out again."""
    root = tmp_path_factory.mktemp("prepared")
    arguments = local(one_slow_cell)
    assert main(["run", *arguments, f"out={root / 'whole'}"]) == 0
    views = read_views(root / "whole")
    shutil.copytree(root / "whole", root / "out")
    shutil.rmtree(root / "out" / "cells")
    for kind in ("images", "quantized", "step_errors"):
        for path in (root / "out" / "stages" / kind).iterdir():
            key = json.loads((path / "manifest.json").read_text())["key"]
            if kind != "images" or key["denoiser"] != "float":
                shutil.rmtree(path)
    return Prepared(root / "out", views)


@pytest.fixture
def sweep(
    cluster: Cluster,
    segbench: Callable[..., Answer],
    one_slow_cell: list[str],
    prepared: Prepared,
    tmp_path: Path,
) -> Iterator[Sweep]:
    """One cell to be interrupted, on a store of its own."""
    shutil.copytree(prepared.out, tmp_path / "out")
    yield Sweep(segbench, one_slow_cell, tmp_path / "out")
    cluster.run("scancel", "--user", "root")
    wait_until(lambda: not cluster.run("squeue", "-h"), seconds=SECONDS)
