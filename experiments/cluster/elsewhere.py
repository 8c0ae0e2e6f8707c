"""A sweep that runs in other processes: submitted, watched, and gathered from its records."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.records import Record
from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.run_cell import find_record, record_failure, run_cell
from experiments.cluster.states import FAILED, CellState, cell_states, read_any_record, summary
from experiments.cluster.submission import Submission, jobs_folder, plan_jobs, run_id, submit
from experiments.config.request import Request
from slurm.launch import run_local
from slurm.queue import SlurmError

log = logging.getLogger(__name__)

_POLL_SECONDS = 3.0
_IDLE_SHARE = 5.0  # of the time that a look takes
_LOST_LOOKS = 3  # a record may show late on a shared file system

Note = Callable[[str], None]


@dataclass(frozen=True)
class Gathered:
    """What is known when a call ends."""

    records: list[Record]
    states: list[CellState]

    @property
    def waiting(self) -> bool:
        """Whether cells are still in the queue."""
        return any(not state.over for state in self.states)


def pending_cells(
    request: Request, benches: dict[int, Bench], *, only: set[str] | None = None
) -> list[int]:
    """Cells without a final record; `only` keeps those with these run ids.

    Cells that their method does not do get their record here: that needs no job.
    """
    pending = []
    for index, cell in enumerate(request.cells):
        bench = benches[index]
        if find_record(bench, cell) is not None:
            continue
        if only is not None and run_id(bench, cell) not in only:
            continue
        if cell.method.unsupported(cell.bits) is not None:
            run_cell(bench, cell)
        else:
            pending.append(index)
    return pending


def run_processes(
    request: Request,
    benches: dict[int, Bench],
    pending: Sequence[int],
    *,
    root: Path,
    progress: Progress,
) -> list[CellState]:
    """Runs the pending cells in processes of this machine; a line for each job that ends."""
    jobs = plan_jobs(request, benches, pending, running=set())
    failed: dict[str, str] = {}
    for outcome in run_local(jobs, folder=jobs_folder(root)):
        job = jobs[outcome.index]
        failed |= dict.fromkeys(job.items, outcome.error) if outcome.error else {}
        progress.note(f"{job.label}: {outcome.error or 'done'}")
    for index in pending:
        bench, cell = benches[index], request.cells[index]
        reason = failed.get(run_id(bench, cell)) or failed.get(f"{run_id(bench, cell)}:images")
        if reason is not None and read_any_record(bench, cell) is None:
            record_failure(bench, cell, f"its job ended without a record: {reason}")
    return cell_states(request, benches, root=root, ask=False)


def send(
    request: Request, benches: dict[int, Bench], pending: Sequence[int], *, root: Path
) -> Submission:
    """Submits the pending cells to Slurm, but for those in flight."""
    return submit(request, benches, pending, root=root)


def follow(
    request: Request,
    benches: dict[int, Bench],
    *,
    root: Path,
    note: Note,
    poll_seconds: float = _POLL_SECONDS,
) -> list[CellState]:
    """Waits until no cell is in the queue; one line for each that ends.

    Stopping it stops no job: the same command, or `status`, takes up the watch again.
    """
    told: set[str] = set()
    looks: dict[str, int] = {}
    answered = True
    while True:
        begun = time.monotonic()
        try:
            states = cell_states(request, benches, root=root)
            answered = True
        except SlurmError as error:
            if answered:
                note(f"{error}; waiting for Slurm, the jobs go on")
            answered = False
            time.sleep(poll_seconds)
            continue
        for state in states:
            lost = state.state == "lost"
            looks[state.run_id] = looks.get(state.run_id, 0) + 1 if lost else 0
        busy = [
            s
            for s in states
            if s.state in ("running", "queued")
            or (s.state == "lost" and looks[s.run_id] < _LOST_LOOKS)
        ]
        waiting = {state.run_id for state in busy}
        for state in states:
            if state.over and state.run_id not in waiting and state.run_id not in told:
                told.add(state.run_id)
                note(f"{state.label}: {state.state}{f': {state.detail}' if state.detail else ''}")
        if not busy:
            break
        # a look at thousands of cells takes a while: most of the time is spent waiting
        time.sleep(max(poll_seconds, _IDLE_SHARE * (time.monotonic() - begun)))
    note(summary(states))
    return states


def record_lost(
    request: Request, benches: dict[int, Bench], states: Sequence[CellState]
) -> list[CellState]:
    """Cells whose job ended without a word get a record that says so; they are failed then."""
    for index, state in enumerate(states):
        if state.state == "lost":
            record_failure(benches[index], request.cells[index], state.detail)
    return list(states)


def gather(request: Request, benches: dict[int, Bench], states: Sequence[CellState]) -> Gathered:
    """The records that are there."""
    found = [read_any_record(benches[i], cell) for i, cell in enumerate(request.cells)]
    return Gathered([record for record in found if record is not None], list(states))


def any_failed(states: Sequence[CellState]) -> bool:
    return any(state.state in FAILED for state in states)
