"""A sweep that runs in other processes: what is pending, processes of this machine, a watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from experiments.cell.cell import Cell
from experiments.cell.run_cell import record_failure, run_cell
from experiments.cell.sweep import Sweep
from experiments.cluster.states import CellState, cell_states, summary
from experiments.cluster.submission import jobs_folder, plan_jobs
from slurm.launch import run_local
from slurm.queue import SlurmError

_POLL_SECONDS = 3.0
_IDLE_SHARE = 5.0  # of the time that a look takes
_LOST_LOOKS = 3  # a record may show late on a shared file system

Note = Callable[[str], None]


def pending_cells(sweep: Sweep, *, only: set[str] | None = None) -> list[Cell]:
    """Cells without a final record; `only` keeps those with these run ids.

    Cells that their method does not do get their record here: that needs no job.
    """
    pending = []
    for cell in sweep.cells:
        if cell.record() is not None or (only is not None and cell.run_id not in only):
            continue
        if cell.refused is not None:
            run_cell(cell)
        else:
            pending.append(cell)
    return pending


def run_processes(sweep: Sweep, pending: Sequence[Cell]) -> list[CellState]:
    """Runs the pending cells in processes of this machine; a line for each job that ends."""
    jobs = plan_jobs(pending, running=set())
    failed: dict[str, str] = {}
    gpus = torch.cuda.device_count()
    for outcome in run_local(jobs, folder=jobs_folder(sweep.store.root), gpus=gpus):
        job = jobs[outcome.index]
        failed |= dict.fromkeys(job.items, outcome.error) if outcome.error else {}
        sweep.progress.note(f"{job.label}: {outcome.error or 'done'}")
    for cell in pending:
        reason = failed.get(cell.run_id) or failed.get(f"{cell.run_id}:images")
        if reason is not None and cell.read_record() is None:
            record_failure(cell, f"its job ended without a record: {reason}")
    reasons = {run_id: reason for item, reason in failed.items() if (run_id := item.split(":")[0])}
    return [
        replace(state, state="failed", detail=reasons[state.run_id])
        if state.state == "outdated" and state.run_id in reasons
        else state
        for state in cell_states(sweep, ask=False)
    ]


def follow(sweep: Sweep, *, note: Note, poll_seconds: float = _POLL_SECONDS) -> list[CellState]:
    """Waits until no cell is in the queue; one line for each that ends.

    Stopping it stops no job: the same command, or `status`, takes up the watch again.
    """
    told: set[str] = set()
    looks: dict[str, int] = {}
    answered = True
    while True:
        begun = time.monotonic()
        try:
            states = cell_states(sweep)
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


def record_lost(states: Sequence[CellState]) -> None:
    """Cells whose job ended without a word get a record that says so; they are failed then."""
    for state in states:
        if state.state == "lost":
            record_failure(state.cell, state.detail)
