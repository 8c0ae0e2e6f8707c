"""Whole sweeps on a real Slurm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.arrays import Job
from slurm.launch import submit_arrays
from slurm.ledger import Ledger
from slurm.queue import final_states, max_array_size, queue_states
from slurm.settings import JobSettings
from tests.conftest import FAMILIES, SETTINGS, Answer
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import ON_SLURM, SECONDS, Prepared, Sweep, local, read_views

pytestmark = pytest.mark.slurm

GRID = ("method=rtn,gptq,smoothquant,segquant_a", "bits=w8a8_int8,w4a8_int")


@pytest.fixture(scope="module")
def named_models(zoo: Path) -> str:
    """`model=` takes the families' own yaml files, whose folders the tests do not want."""
    return ",".join(str(zoo / name) for name in FAMILIES)


def test_24_cells_as_job_arrays_equal_those_of_one_process(
    cluster: Cluster, segbench: Callable[..., Answer], zoo: Path, named_models: str, tmp_path: Path
) -> None:
    request = [
        "model=folder",
        f"model.path={named_models}",
        f"metrics.evaluator={zoo / 'evaluator'}",
        *SETTINGS,
        *GRID,
        *ON_SLURM,
        "cluster.cells_per_job=4",
    ]
    here = Sweep(segbench, local(request), tmp_path / "here")
    here.run()
    there = Sweep(segbench, request, tmp_path / "there")
    answer = there.run()
    assert "submitted 24 cells" in answer.out
    assert "24 are in the queue already" in there.run().out
    there.run("--follow")
    views = there.views()
    assert len(views) == 24
    assert {view["status"] for view in views.values()} == {"ok"}
    assert views == here.views()
    attempts = there.attempts()
    assert {len(tries) for tries in attempts.values()} == {1}, "a stage was begun twice"
    assert sum(name.startswith("calibration/") for name in attempts) <= 2 * len(FAMILIES)
    states = final_states(there.jobs())
    assert {state.state for state in states.values()} == {"COMPLETED"}
    assert len(there.jobs()) == 2 + len(FAMILIES), "one array a shared stage, and one a model"
    assert "24 done" in there.call("status").out
    before = there.jobs()
    there.run()
    assert there.jobs() == before, "a finished sweep submits nothing"


def test_a_failed_cell_is_failed_to_slurm_and_touches_no_other(
    cluster: Cluster, segbench: Callable[..., Answer], zoo: Path, tmp_path: Path
) -> None:
    """The first cell of a pack fails, the second is done; metrics are jobs of their own."""
    request = [
        f"model.path={zoo / 'tiny_unet'}",
        f"metrics.evaluator={zoo / 'evaluator'}",
        *SETTINGS,
        "method=rtn,smoothquant",
        *ON_SLURM,
        "cluster.cells_per_job=2",
    ]
    sweep = Sweep(segbench, request, tmp_path / "out")
    quantized = tmp_path / "out" / "stages" / "quantized"
    name = _stage_of_rtn(sweep)
    with _in_the_way(quantized / f"{name}.partial"):
        answer = sweep.run("--follow", status=1)
    assert "rtn" in answer.err
    views = sweep.views()
    by_method = {method: view["status"] for (_, method, _), view in views.items()}
    assert by_method == {"rtn": "failed", "smoothquant": "ok"}
    assert final_states(sweep.jobs()[-1:])[sweep.jobs()[-1]].state == "FAILED"
    told = sweep.call("status", "--json", status=1)
    assert [cell["state"] for cell in json.loads(told.out)] == ["failed", "done"]
    sweep.call("retry", "--follow")
    assert {view["status"] for view in sweep.views().values()} == {"ok"}


@contextlib.contextmanager
def _in_the_way(path: Path) -> Iterator[None]:
    """A file system of its own cannot be renamed: what is made there is never finished."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)
        shutil.rmtree(path, ignore_errors=True)


def _stage_of_rtn(sweep: Sweep) -> str:
    """Where the quantized denoiser of the first cell will lie."""
    from experiments.verbs.words import named_sweep

    quantized = named_sweep([*sweep.arguments, f"out={sweep.out}"]).cells[0].quantized
    assert quantized is not None
    return quantized.hash


def test_a_shared_stage_that_fails_is_named_and_the_same_command_ends_it(
    cluster: Cluster, sweep: Sweep
) -> None:
    """The cells that wait for it are cancelled by Slurm and say why."""
    (calibration,) = (sweep.out / "stages" / "calibration").iterdir()
    (calibration / "manifest.json").write_bytes(b"{")
    with _in_the_way(calibration.with_suffix(".partial")):
        assert sweep.run("--follow", status=1).err.count("ended CANCELLED") >= 1
        assert "calibration" in sweep.call("status", status=1).out
    sweep.run("--follow")
    assert {view["status"] for view in sweep.views().values()} == {"ok"}


def test_without_accounting_a_cancelled_job_is_not_waited_for(
    bare_cluster: Cluster, tmp_path: Path
) -> None:
    """squeue alone tells; and arrays are split where this cluster says."""
    assert max_array_size() == 4
    settings = JobSettings(
        executor="slurm", parallel=2, timeout_minutes=5, cpus=1, memory_gb=1, gpus=0
    )
    jobs = [
        Job(items=(f"{i}",), work=os.getpid, settings=settings, stage="cell", label=f"{i}")
        for i in range(6)
    ]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    made = list(submit_arrays(jobs, folder=tmp_path, name="t", ledger=ledger, running={}))
    assert [len(array.array.jobs) for array in made] == [4, 2]
    entries = ledger.entries(lambda _: None)
    bare_cluster.run("scancel", f"{made[0].job}_3")
    wait_until(
        lambda: not any(s.alive for s in queue_states(e.job for e in entries.values()).values()),
        seconds=SECONDS,
    )
    states = queue_states(entry.job for entry in entries.values())
    cancelled = states.get(entries["3"].job)  # squeue drops one that never began
    assert cancelled is None or cancelled.state == "CANCELLED"
    assert {states[entries[name].job].state for name in "01245"} == {"COMPLETED"}
    assert final_states(["1"]) == {}


def test_a_refused_submission_is_one_line(sweep: Sweep) -> None:
    answer = sweep.run("cluster.jobs.partition=nowhere", status=2)
    assert "nowhere" in answer.err or "partition" in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_hydras_own_launcher_works_too(
    cluster: Cluster, zoo: Path, prepared: Prepared, one_slow_cell: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    shutil.copytree(prepared.out, tmp_path / "out")
    command = [sys.executable, "-m", "experiments.cluster.hydra_main", "-m", *local(one_slow_cell)]
    launcher = {
        "timeout_min": 30,
        "cpus_per_task": 1,
        "mem_gb": 1,
        "setup": f'["export PYTHONPATH={Path.cwd()}"]',
    }
    options = [f"hydra.launcher.{key}={value}" for key, value in launcher.items()]
    subprocess.run(
        [
            *command,
            "hydra/launcher=submitit_slurm",
            *options,
            "model=folder",
            "device=cpu",
            f"out={tmp_path / 'out'}",
            f"hydra.sweep.dir={tmp_path / 'hydra'}",
        ],
        check=True,
        timeout=SECONDS,
    )
    assert read_views(tmp_path / "out") == prepared.views
