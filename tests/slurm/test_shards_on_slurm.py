"""Shards as job arrays on a real Slurm: any number gives the same; a killed one is made again."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.sampling.calibrate import load_calibration
from segquant.core.calibration import TENSOR_KEYS
from tests.conftest import SETTINGS, Answer
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ON_SLURM, SECONDS, Sweep, local, read_views

pytestmark = pytest.mark.slurm

FEW = (
    "model.batch_size=1",
    "dataset.evaluation_prompts=5",
    "dataset.calibration_prompts=5",
    "metrics.teacher_forced_prompts=2",
)


@pytest.fixture(scope="module")
def request_(zoo: Path) -> list[str]:
    folder = [f"model.path={zoo / 'tiny_unet'}", f"metrics.evaluator={zoo / 'evaluator'}"]
    settings = [s for s in SETTINGS if s.split("=")[0] not in {x.split("=")[0] for x in FEW}]
    return [*folder, *settings, *FEW, "method=smoothquant", *ON_SLURM]


@pytest.fixture(scope="module")
def whole(request_: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes, without shards."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["run", *local(request_), "device=cpu", f"out={out}"]) == 0
    return out


@pytest.fixture
def sweep(
    cluster: Cluster, segbench: Callable[..., Answer], request_: list[str], tmp_path: Path
) -> Iterator[Sweep]:
    yield Sweep(segbench, request_, tmp_path / "out")
    cluster.run("scancel", "--user", "root")
    wait_until(lambda: not cluster.run("squeue", "-h"), seconds=SECONDS)


def _pictures(out: Path) -> dict[str, bytes]:
    folder = out / "stages" / "images"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*.png")}


def _check(out: Path, whole: Path) -> None:
    assert len(_pictures(whole)) == 2 * 5
    assert _pictures(out) == _pictures(whole)
    views = [read_views(folder) for folder in (out, whole)]
    for (view,) in (one.values() for one in views):
        view.pop("calibration_forwards")  # each shard looks at its memory with one more
    assert views[0] == views[1]
    statistics = []
    for folder in (out, whole):
        (path,) = (folder / "stages" / "calibration").glob("*/manifest.json")
        statistics.append(load_calibration(path.parent).statistics)
    assert list(statistics[0]) == list(statistics[1])
    for name, seen in statistics[0].items():
        for key in TENSOR_KEYS:
            one, other = getattr(seen, key), getattr(statistics[1][name], key)
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other), (name, key)
    assert not list((out / "stages").glob("*_shards_*"))
    assert not list(out.rglob("*.partial"))


def _stages(sweep: Sweep) -> list[tuple[str, int]]:
    """Of every array that was submitted its stage, and how many jobs it has."""
    lines = (sweep.out / "jobs" / "ledger.jsonl").read_text().splitlines()
    intents = [line for line in map(json.loads, lines) if "items" in line]
    return [(line["stage"], len(line["items"])) for line in intents]


def test_two_shards_give_what_one_process_gives(sweep: Sweep, whole: Path) -> None:
    sweep.run("cluster.shards=2", "--follow")
    _check(sweep.out, whole)
    shards = [("reference-shard", 2), ("calibration-shard", 2)]
    shared = [("reference", 1), ("calibration", 1)]
    assert _stages(sweep) == [*shards, *shared, ("quantize", 1), ("images-shard", 2), ("cell", 1)]


def test_a_killed_shard_is_submitted_again_alone(
    cluster: Cluster, sweep: Sweep, whole: Path
) -> None:
    """One of five of the calibration, with SIGKILL: the rest of its array ends, and is kept."""
    shutil.copytree(whole, sweep.out)
    shutil.rmtree(sweep.out / "cells")
    for kind in ("calibration", "quantized", "images", "step_errors", "metrics"):
        for path in (sweep.out / "stages" / kind).iterdir():
            key = json.loads((path / "manifest.json").read_text())["key"]
            if kind != "images" or key["denoiser"] != "float":
                shutil.rmtree(path)
    sweep.run("cluster.shards=5")
    shards = sweep.out / "stages"

    def begun() -> list[Path]:
        return list(shards.glob("calibration_shards_*/*.partial/.attempts.jsonl"))

    wait_until(begun, seconds=SECONDS, poll_seconds=0.01)
    attempt = json.loads(begun()[0].read_text())
    os.kill(attempt["pid"], signal.SIGKILL)
    wait_until(lambda: not cluster.run("squeue", "-h"), seconds=SECONDS)
    told = sweep.call("status", "cluster.shards=5", status=1)
    assert "lost" in told.out
    assert f"of 5 is not there (job {attempt['job']})" in told.out
    finished = list(shards.glob("calibration_shards_*/*/manifest.json"))
    assert len(finished) == 4
    before = len(_stages(sweep))
    sweep.call("retry", "cluster.shards=5", "--follow")
    again = [("calibration-shard", 1), ("calibration", 1)]
    assert _stages(sweep)[before:] == [*again, ("quantize", 1), ("images-shard", 5), ("cell", 1)]
    _check(sweep.out, whole)
