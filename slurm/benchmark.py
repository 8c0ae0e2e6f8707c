"""What the launcher costs, on the Slurm that is at hand: `python -m slurm.benchmark`.

Three measurements of cells that do nothing but sleep:

- submission of 100, 300 and 1,000 cells, one a job: seconds, calls of Slurm's commands, files;
- 1,000 cells packed into 40 jobs and run to their end;
- the same cells by this launcher and by a bare sbatch array, in turns: the ratio of the times from
  the first command to the last cell's end.

Writes `slurm_launcher.json` and `slurm_launcher.md` below --out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import shutil
import stat
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slurm.arrays import Job
from slurm.launch import submit_arrays
from slurm.ledger import Ledger
from slurm.queue import call, queue_states
from slurm.settings import JobSettings

COMMANDS = ("sbatch", "squeue", "scontrol", "sacct", "scancel")
SIZES = (100, 300, 1000)
PACKED_CELLS, CELLS_PER_JOB = 1000, 25
RACE_CELLS, RACE_SECONDS, TURNS = 24, 1.0, 3
_PARALLEL = 4
_POLL_SECONDS = 0.5
_LIMIT_SECONDS = 1800


def sleep_cells(count: int, seconds: float) -> int:
    """The work of a job: so many cells, each of which sleeps."""
    for _ in range(count):
        time.sleep(seconds)
    return count


@dataclass(kw_only=True)
class Submission:
    """Putting cells into the queue, one a job."""

    cells: int
    seconds: float
    calls: dict[str, int]
    files: int
    bytes: int


@dataclass(kw_only=True)
class Race:
    """The same cells twice: seconds from the first command to the end of the last cell."""

    launcher_seconds: float
    sbatch_seconds: float

    @property
    def ratio(self) -> float:
        return self.launcher_seconds / self.sbatch_seconds


@contextlib.contextmanager
def counted_calls(folder: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """Counts every call of Slurm's commands, by whomever, through stand-ins first on PATH."""
    log = folder / "calls"
    log.touch()
    shims = folder / "shims"
    shims.mkdir()
    for name in COMMANDS:
        real = shutil.which(name)
        if real is None:
            continue
        path = shims / name
        path.write_text(f'#!/bin/sh\necho {name} >> "{log}"\nexec "{real}" "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{shims}:{before}"
    try:
        yield lambda: dict(Counter(log.read_text().split()))
    finally:
        os.environ["PATH"] = before


def make_jobs(cells: int, *, per_job: int, seconds: float, options: dict[str, str]) -> list[Job]:
    settings = JobSettings(
        executor="slurm",
        parallel=_PARALLEL,
        timeout_minutes=30,
        cpus=1,
        memory_gb=1,
        gpus=0,
        options=options,
    )
    return [
        Job(
            items=tuple(f"{index}" for index in range(start, min(start + per_job, cells))),
            work=functools.partial(sleep_cells, min(per_job, cells - start), seconds),
            settings=settings,
            stage="cell",
            label=f"cells from {start}",
        )
        for start in range(0, cells, per_job)
    ]


def _submit(jobs: Sequence[Job], folder: Path) -> list[str]:
    ledger = Ledger(folder / "ledger.jsonl")
    made = submit_arrays(jobs, folder=folder, name="benchmark", ledger=ledger, running={})
    return [array.job for array in made]


def _wait(jobs: Sequence[str]) -> None:
    end = time.monotonic() + _LIMIT_SECONDS
    while any(state.alive for state in queue_states(jobs).values()):
        if time.monotonic() > end:
            raise TimeoutError(f"jobs {', '.join(jobs)} are not over after {_LIMIT_SECONDS} s")
        time.sleep(_POLL_SECONDS)


def _size(folder: Path) -> tuple[int, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return len(files), sum(path.stat().st_size for path in files)


def measure_submission(cells: int) -> Submission:
    """Submits held jobs, which are cancelled at once."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as counts:
        folder = Path(name)
        jobs = make_jobs(cells, per_job=1, seconds=0, options={"begin": "now+2hours"})
        with counted_calls(Path(counts)) as calls:
            begun = time.perf_counter()
            ids = _submit(jobs, folder)
            seconds = time.perf_counter() - begun
            made = calls()
        files, size = _size(folder)
        call(["scancel", *ids])
    return Submission(cells=cells, seconds=seconds, calls=made, files=files, bytes=size)


def measure_packed() -> dict[str, Any]:
    """A thousand cells in a few jobs, run to their end."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as counts:
        folder = Path(name)
        jobs = make_jobs(PACKED_CELLS, per_job=CELLS_PER_JOB, seconds=0, options={})
        with counted_calls(Path(counts)) as calls:
            begun = time.perf_counter()
            ids = _submit(jobs, folder)
            submitted = time.perf_counter() - begun
            _wait(ids)
            seconds = time.perf_counter() - begun
            made = calls()
        files, size = _size(folder)
    return {
        "cells": PACKED_CELLS,
        "jobs": len(jobs),
        "submission_seconds": submitted,
        "seconds": seconds,
        "calls": made,
        "files": files,
        "bytes": size,
    }


def measure_race() -> Race:
    """The launcher and a bare sbatch array of the same cells, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        jobs = make_jobs(RACE_CELLS, per_job=1, seconds=RACE_SECONDS, options={})
        _wait(_submit(jobs, Path(name)))
        ours = time.perf_counter() - begun
        code = f"import time; time.sleep({RACE_SECONDS})"
        begun = time.perf_counter()
        said = call(
            [
                *("sbatch", "--parsable", "--cpus-per-task=1", "--mem=1GB", "--time=30"),
                *(f"--array=0-{RACE_CELLS - 1}%{_PARALLEL}", f"--output={name}/bare-%a.out"),
                *("--wrap", f'srun --cpus-per-task=1 {sys.executable} -c "{code}"'),
            ]
        )
        _wait([said.strip()])
        bare = time.perf_counter() - begun
    return Race(launcher_seconds=ours, sbatch_seconds=bare)


def render(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        "# What the launcher costs",
        "",
        "Made by `python -m slurm.benchmark`; the cells do nothing but sleep.",
        f"{result['machine']}; {result['slurm']}; {result['cpus']} CPUs.",
        "",
        "Submission, one cell a job:",
        "",
        "| cells | seconds | ms a cell | sbatch | other calls | files | files a cell | kB a cell |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["submission"]:
        calls = row["calls"]
        others = sum(calls.values()) - calls.get("sbatch", 0)
        lines.append(
            f"| {row['cells']} | {row['seconds']:.2f} | {1000 * row['seconds'] / row['cells']:.1f} "
            f"| {calls.get('sbatch', 0)} | {others} | {row['files']} "
            f"| {row['files'] / row['cells']:.2f} | {row['bytes'] / row['cells'] / 1000:.1f} |"
        )
    packed = result["packed"]
    calls = ", ".join(f"{count} {name}" for name, count in sorted(packed["calls"].items()))
    lines += [
        "",
        f"{packed['cells']} cells in {packed['jobs']} jobs, run to their end: submitted in "
        f"{packed['submission_seconds']:.2f} s, over after {packed['seconds']:.1f} s; calls: "
        f"{calls}; {packed['files']} files.",
        "",
        f"Against a bare sbatch array: {RACE_CELLS} cells of {RACE_SECONDS} s, {_PARALLEL} at a "
        "time, from the first command to the end of the last cell:",
        "",
        "| turn | launcher s | bare sbatch s | ratio |",
        "|---|---|---|---|",
    ]
    for turn, race in enumerate(result["race"], start=1):
        lines.append(
            f"| {turn} | {race['launcher_seconds']:.1f} | {race['sbatch_seconds']:.1f} "
            f"| {race['ratio']:.2f} |"
        )
    lines.append("")
    lines.append(f"Median ratio {result['median_ratio']:.2f}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m slurm.benchmark")
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    out: Path = parser.parse_args().out
    races = [measure_race() for _ in range(TURNS)]
    result = {
        "machine": platform.platform(),
        "slurm": call(["sinfo", "--version"]).strip(),
        "cpus": os.cpu_count(),
        "submission": [asdict(measure_submission(size)) for size in SIZES],
        "packed": measure_packed(),
        "race": [{**asdict(race), "ratio": race.ratio} for race in races],
        "median_ratio": statistics.median(race.ratio for race in races),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "slurm_launcher.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "slurm_launcher.md").write_text(render(result))


if __name__ == "__main__":
    from slurm import benchmark  # jobs find the work by this name, not as __main__

    benchmark.main()
