"""Whatever happens to a sweep, the same command ends it with the same records.

Each test breaks something while a cell's images are being made, gives the command again, and looks
that no image was made twice and that nobody else worked on the stage meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import SECONDS, Prepared, Sweep

pytestmark = pytest.mark.slurm


def _state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "--states=all", "-o", "%T %r", "-j", job).strip()


def _release(cluster: Cluster, job: str) -> None:
    """A requeued job is held for two minutes; this lets it go at once."""
    wait_until(lambda: _state(cluster, job) == "PENDING BeginTime", seconds=SECONDS)
    cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")


def _stamps(sweep: Sweep) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sweep.pictures()}


def _check(
    sweep: Sweep, prepared: Prepared, *, kept: dict[str, int], attempts: int | None = 2
) -> None:
    """The same records; images that were whole before the fault were kept."""
    assert sweep.views() == prepared.views
    images = [p for p in sweep.out.glob("stages/images/*/*.png") if ".damaged" not in p.parent.name]
    stamps = {(path.name, path.stat().st_mtime_ns) for path in images}
    again = [name for name, stamp in kept.items() if (name, stamp) not in stamps]
    assert not again, f"made again: {again}"
    made = {len(tries) for tries in sweep.attempts().values()}
    assert attempts is None or max(made) == attempts
    assert not list(sweep.out.rglob("*.lock"))
    assert not list(sweep.out.rglob("*.partial"))


def _go_on(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)


def _gone(process: int, *, keep_frozen: bool = False) -> bool:
    """Whether the process has ended; `keep_frozen` stops it again when Slurm has woken it."""
    with contextlib.suppress(ProcessLookupError):
        if keep_frozen:
            os.kill(process, signal.SIGSTOP)
    return not Path(f"/proc/{process}").exists()


def test_scancel_of_a_running_cell(cluster: Cluster, sweep: Sweep, prepared: Prepared) -> None:
    """The process ignores SIGTERM, and on a fast machine would be done before the SIGKILL."""
    sweep.run()
    process = sweep.freeze()
    (job,) = sweep.jobs()
    cluster.run("scancel", job)
    wait_until(lambda: _gone(process, keep_frozen=True), seconds=SECONDS, poll_seconds=0.01)
    wait_until(lambda: _state(cluster, job).startswith("CANCELLED"), seconds=SECONDS)
    kept = _stamps(sweep)
    answer = sweep.call("status", status=1)
    assert "lost" in answer.out
    assert f"job {job} ended CANCELLED without a record" in answer.out
    assert "_log.out" in answer.out
    sweep.run("--follow")
    _check(sweep, prepared, kept=kept)


def test_kill_9_of_the_jobs_process(cluster: Cluster, sweep: Sweep, prepared: Prepared) -> None:
    sweep.run()
    process = sweep.freeze()
    (job,) = sweep.jobs()
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: _state(cluster, job).startswith("FAILED"), seconds=SECONDS)
    kept = _stamps(sweep)
    sweep.call("retry", "--follow")
    _check(sweep, prepared, kept=kept)


def test_preemption_by_a_higher_partition(
    cluster: Cluster, sweep: Sweep, prepared: Prepared
) -> None:
    sweep.run("cluster.jobs.partition=scavenge")
    sweep.wait_for_pictures()
    (job,) = sweep.jobs()
    urgent = cluster.run(
        "sbatch",
        "--parsable",
        "-p",
        "main",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 600",
    ).strip()
    wait_until(lambda: _state(cluster, urgent).startswith("RUNNING"), seconds=SECONDS)
    kept = _stamps(sweep)
    cluster.run("scancel", urgent)
    assert "queued" in sweep.call("status", "cluster.jobs.partition=scavenge").out
    _release(cluster, job)
    sweep.run("cluster.jobs.partition=scavenge", "--follow")
    assert sweep.jobs() == [job], "the same job went on; none was submitted again"
    (path,) = (sweep.out / "cells").glob("*/record.json")
    assert json.loads(path.read_text())["environment"]["requeues"] == 1
    _check(sweep, prepared, kept=kept)
    log = next((sweep.out / "jobs").glob("*/*_log.out")).read_text()
    assert "Caught signal SIGUSR2" in log
    assert "this job is preempted" in log


def test_a_time_out_with_checkpoint_and_continuation(
    cluster: Cluster, sweep: Sweep, prepared: Prepared
) -> None:
    """The process is frozen, so that it is at work when its minute ends, on any machine."""
    limits = ("cluster.jobs.timeout_minutes=1", "cluster.jobs.signal_seconds=10")
    sweep.run(*limits)
    process = sweep.freeze()
    (job,) = sweep.jobs()
    wait_until(lambda: _was_signalled(process, signal.SIGUSR2), seconds=SECONDS)
    _go_on(process)
    _release(cluster, job)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=30")  # once is enough
    kept = _stamps(sweep)
    sweep.run(*limits, "--follow")
    assert sweep.jobs() == [job]
    (path,) = (sweep.out / "cells").glob("*/record.json")
    assert json.loads(path.read_text())["environment"]["requeues"] >= 1
    assert "this job is timed-out" in next((sweep.out / "jobs").glob("*/*_log.out")).read_text()
    _check(sweep, prepared, kept=kept)


def _was_signalled(process: int, number: signal.Signals) -> bool:
    """Whether the signal waits for a frozen process, or Slurm woke it and it has gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_the_controller_stops_and_comes_back(
    cluster: Cluster, sweep: Sweep, prepared: Prepared
) -> None:
    sweep.run()
    process = sweep.freeze()
    (job,) = sweep.jobs()
    kept = _stamps(sweep)
    cluster.stop("slurmctld")
    try:
        for verb in ("status", "run"):
            answer = sweep.call(verb, status=2)
            assert "slurm" in answer.err.splitlines()[-1].lower()
    finally:
        _go_on(process)
        cluster.start_controller()
    sweep.run("--follow")
    assert sweep.jobs() == [job], "nothing was submitted twice"
    _check(sweep, prepared, kept=kept, attempts=1)


def test_a_node_goes_down_and_comes_back(
    cluster: Cluster, sweep: Sweep, prepared: Prepared
) -> None:
    """slurmd dies, its job lives on; Slurm gives the node up and queues the job again.

    Slurm holds such a job for two minutes while it clears the node; let go at once, its second run
    may be caught in that and fail, which the same command then mends too.
    """
    sweep.run()
    process = sweep.freeze()
    (job,) = sweep.jobs()
    kept = _stamps(sweep)
    cluster.stop("slurmd", how=signal.SIGKILL)
    try:
        wait_until(lambda: "down" in cluster.node_state(), seconds=SECONDS)
        # Slurm names the reason at its next look at the queue.
        wait_until(lambda: _state(cluster, job) == "PENDING BeginTime", seconds=SECONDS)
        assert "queued" in sweep.call("status").out
    finally:
        cluster.start_node()
        _go_on(process)
    wait_until(lambda: _gone(process), seconds=SECONDS)
    _release(cluster, job)
    statuses: list[int] = []
    while not statuses or (statuses[-1] and len(statuses) < 3):
        statuses.append(sweep.ask("run", "--follow").status)
    assert statuses[-1] == 0
    _check(sweep, prepared, kept=kept, attempts=None)


def test_a_corrupted_artifact_is_made_again(
    cluster: Cluster, sweep: Sweep, prepared: Prepared
) -> None:
    """One byte of a reference image and one of the statistics, sizes unchanged."""
    picture = min(sweep.out.glob("stages/images/*/*.png"))
    statistics = max(sweep.out.glob("stages/calibration/*/**/*.safetensors"))
    for path in (picture, statistics):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    sweep.run("--follow")
    assert sweep.views() == prepared.views
    damaged = {path.parent.name for path in sweep.out.glob("stages/*/*.damaged-*")}
    assert damaged == {"images", "calibration"}


def test_two_identical_sweeps_at_once(
    cluster: Cluster, one_slow_cell: list[str], prepared: Prepared, tmp_path: Path
) -> None:
    """From an empty store: each stage has one maker, each item one job."""
    command = [sys.executable, "-m", "experiments", "run", "-m", "--follow"]
    request = [*command, *one_slow_cell, f"out={tmp_path}"]
    both = [subprocess.Popen(request, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=SECONDS) for process in both] == [0, 0]
    sweep = Sweep(lambda *_: Answer(0, "", ""), [], tmp_path)
    assert sweep.views() == prepared.views
    assert {len(tries) for tries in sweep.attempts().values()} == {1}
    lines = (tmp_path / "jobs" / "ledger.jsonl").read_text().splitlines()
    items = [
        name for line in lines for names in json.loads(line).get("items", []) for name in names
    ]
    assert len(items) == len(set(items)) == 3


# disks -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which a test may fill or make read-only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
    yield disk
    wait_until(
        lambda: subprocess.run(["umount", str(disk)], check=False).returncode == 0, seconds=60
    )


@pytest.fixture
def disk_sweep(
    cluster: Cluster,
    segbench: Callable[..., Answer],
    one_slow_cell: list[str],
    prepared: Prepared,
    small_disk: Path,
) -> Iterator[Sweep]:
    shutil.copytree(prepared.out, small_disk / "out")
    yield Sweep(segbench, one_slow_cell, small_disk / "out")
    cluster.run("scancel", "--user", "root")
    wait_until(lambda: not cluster.run("squeue", "-h"), seconds=SECONDS)


def test_a_full_disk(
    cluster: Cluster, disk_sweep: Sweep, small_disk: Path, prepared: Prepared
) -> None:
    disk_sweep.run()
    process = disk_sweep.freeze()
    (job,) = disk_sweep.jobs()
    ballast = small_disk / "ballast"
    with ballast.open("wb") as stream:
        block = b"\0" * 65536
        try:
            while True:
                stream.write(block)
                stream.flush()
        except OSError:
            pass
    _go_on(process)
    wait_until(lambda: _state(cluster, job).startswith("FAILED"), seconds=SECONDS)
    kept = _stamps(disk_sweep)
    assert "MB free" in disk_sweep.run(status=2).err
    ballast.unlink()
    disk_sweep.run("--follow")
    _check(disk_sweep, prepared, kept=kept)


def test_a_read_only_store(
    cluster: Cluster, disk_sweep: Sweep, small_disk: Path, prepared: Prepared
) -> None:
    disk_sweep.run("+cluster.jobs.options.begin=now+1hour")
    (job,) = disk_sweep.jobs()

    def remount(how: str) -> None:
        command = ["mount", "-o", f"remount,{how}", str(small_disk)]
        wait_until(lambda: subprocess.run(command, check=False).returncode == 0, seconds=60)

    remount("ro")
    try:
        cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")
        wait_until(lambda: _state(cluster, job).startswith("FAILED"), seconds=SECONDS)
        assert "cannot write there" in disk_sweep.run(status=2).err
    finally:
        remount("rw")
    disk_sweep.run("--follow")
    _check(disk_sweep, prepared, kept={}, attempts=1)
