"""The verbs of sweeps that run elsewhere: what `run` does then, `status`, `retry`, `sync`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.sweep import check_request, make_benches
from experiments.cluster.elsewhere import (
    any_failed,
    follow,
    gather,
    pending_cells,
    record_lost,
    run_processes,
    send,
)
from experiments.cluster.estimate import hours
from experiments.cluster.states import (
    FAILED,
    CellState,
    cell_states,
    render,
    tracebacks,
)
from experiments.cluster.submission import Submission, job_name, jobs_folder, plan_jobs
from experiments.config.request import Request, read_request
from experiments.errors import UserError
from experiments.store.folders import Store
from experiments.verbs.report_files import write_report
from slurm.arrays import Job, plan_arrays
from slurm.launch import preview
from slurm.queue import SlurmError


@dataclass(frozen=True)
class Sweep:
    """A request with what is needed to look at it."""

    request: Request
    store: Store
    benches: dict[int, Bench]

    @property
    def on_slurm(self) -> bool:
        jobs = self.request.cells[0].cluster.jobs
        return jobs is not None and jobs.executor == "slurm"

    def states(self) -> list[CellState]:
        """Where every cell stands; the queue is asked wherever there is one.

        Raises:
            UserError: the scheduler does not answer.
        """
        try:
            return cell_states(self.request, self.benches, root=self.store.root, ask=self.on_slurm)
        except SlurmError as error:
            raise UserError(str(error)) from error


def open_sweep(arguments: Sequence[str], *, multirun: bool) -> Sweep:
    """A request from words of which the first may be an experiment's name."""
    given = list(arguments)
    if given and "=" not in given[0]:
        given[0] = f"+experiment={given[0]}"
    request = read_request(given, multirun=multirun)
    store = Store(Path(request.cells[0].out))
    progress = Progress(cells=len(request.cells), prompts=0)
    return Sweep(request, store, make_benches(request, store, progress))


# run -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a verb says: text for people, data for programs, and the exit status."""

    text: str
    data: Any
    failed: bool


def run_elsewhere(
    sweep: Sweep,
    *,
    progress: Progress,
    watch: bool,
    only: set[str] | None = None,
) -> Answer:
    """Runs a sweep as jobs. On Slurm the answer comes at once unless `watch` is set."""
    request, benches, root = sweep.request, sweep.benches, sweep.store.root
    pending = pending_cells(request, benches, only=only)
    if not sweep.on_slurm:
        states = run_processes(request, benches, pending, root=root, progress=progress)
        return _report(sweep, states, progress)
    if pending:
        submission = send(request, benches, pending, root=root)
        progress.note(_say(submission))
        if not watch:
            data = asdict(submission)
            text = f"{_say(submission)}\n{_hint(sweep)}"
            return Answer(text, data, failed=False)
    states = follow(request, benches, root=root, note=progress.note)
    return _report(sweep, record_lost(request, benches, states), progress)


def _say(submission: Submission) -> str:
    said = f"submitted {submission.cells} cells"
    if submission.jobs:
        said += f" as jobs {', '.join(submission.jobs)}"
    if submission.in_flight:
        said += f"; {submission.in_flight} are in the queue already"
    return said


def _hint(sweep: Sweep) -> str:
    return (
        "the same words after `segbench status` show how far it is, with --follow they wait for "
        f"it; logs lie in {jobs_folder(sweep.store.root)}"
    )


def _report(sweep: Sweep, states: list[CellState], progress: Progress) -> Answer:
    from evaluation.records import encode_record

    gathered = gather(sweep.request, sweep.benches, states)
    folder = sweep.store.root / "reports" / sweep.request.name
    report = write_report(sweep.request, gathered.records, sweep.benches, folder=folder)
    for path in report.files:
        progress.note(f"wrote {path}")
    trouble = tracebacks(states, sweep.benches)
    if trouble:
        progress.note(trouble)
    records = [encode_record(record) for record in gathered.records]
    failed = any_failed(states) or any(r.status == "failed" for r in gathered.records)
    return Answer(report.markdown, records, failed=failed)


def describe_jobs(sweep: Sweep) -> Answer:
    """What `run` would submit: jobs, resources, hours, and the text that sbatch gets."""
    request, root = sweep.request, sweep.store.root
    states = sweep.states()
    pending = [
        index
        for index, cell in enumerate(request.cells)
        if cell.method.unsupported(cell.bits) is None
        and states[index].state in ("missing", *FAILED)
    ]
    jobs = plan_jobs(request, sweep.benches, pending, running=set())
    if not sweep.on_slurm:
        arrays = [(array, "") for array in plan_arrays(jobs, max_array_size=len(jobs) or 1)]
    else:
        try:
            arrays = preview(jobs, folder=jobs_folder(root), name=job_name(request))
        except SlurmError as error:
            raise UserError(str(error)) from error
    lines, data = [], []
    for index, (array, text) in enumerate(arrays):
        lines.append(_describe_array(index, array.stage, array.jobs, array.parallel))
        lines += [f"  {job.label}" for job in array.jobs]
        lines += ["", *(f"  | {line}" for line in text.rstrip().splitlines()), ""] if text else []
        data.append(
            {
                "stage": array.stage,
                "jobs": [job.label for job in array.jobs],
                "parallel": array.parallel,
                "resources": asdict(array.settings),
                "hours": hours(list(array.jobs)),
                "sbatch": text,
            }
        )
    total = hours(list(jobs))
    lines.append(f"{len(jobs)} jobs, {_hours(total)} in all")
    return Answer("\n".join(lines), {"arrays": data, "hours": total}, failed=False)


def _describe_array(index: int, stage: str, jobs: Sequence[Job], parallel: int) -> str:
    ask = jobs[0].settings
    where = f" in {ask.partition}" if ask.partition else ""
    return (
        f"array {index}: {len(jobs)} x {stage}{where}, {parallel} at a time; each {ask.cpus} CPUs, "
        f"{ask.memory_gb} GB, {ask.gpus} GPUs, at most {ask.timeout_minutes} min; "
        f"{_hours(hours(list(jobs)))}"
    )


def _hours(value: float | None) -> str:
    if value is None:
        return "hours unknown until one cell has run"
    return f"about {value:.2f} hours"


# status, retry, sync ---------------------------------------------------------------------------


def status(options: argparse.Namespace) -> Answer:
    """Where every cell stands; with --follow, until none is in the queue."""
    sweep = open_sweep(options.overrides, multirun=True)
    if options.follow and sweep.on_slurm:
        note = Progress(cells=0, prompts=0).note
        states = follow(sweep.request, sweep.benches, root=sweep.store.root, note=note)
    else:
        states = sweep.states()
    trouble = tracebacks(states, sweep.benches)
    text = "\n".join(filter(None, [render(states), trouble]))
    data = [
        {"model": s.cell.model.name, "method": s.cell.method_name, "bits": s.cell.bits.name}
        | {"run_id": s.run_id, "state": s.state, "detail": s.detail, "job": s.job, "log": s.log}
        for s in states
    ]
    return Answer(text, data, failed=any_failed(states))


def retry(options: argparse.Namespace) -> Answer:
    """Runs the cells that failed again, and no others."""
    sweep = open_sweep(options.overrides, multirun=True)
    check_request(sweep.request, sweep.benches, sweep.store)
    wanted = {state.run_id for state in sweep.states() if state.state in FAILED}
    progress = Progress(cells=len(wanted), prompts=0)
    if not wanted:
        return Answer("nothing failed", [], failed=False)
    if sweep.request.cells[0].cluster.jobs is None:
        return _retry_here(sweep, wanted, progress)
    return run_elsewhere(sweep, progress=progress, watch=options.follow, only=wanted)


def _retry_here(sweep: Sweep, wanted: set[str], progress: Progress) -> Answer:
    from experiments.cell.run_cell import run_cell
    from experiments.verbs.report_files import log_cell

    for index, state in enumerate(sweep.states()):
        if state.run_id not in wanted:
            continue
        progress.cell(state.label)
        record = run_cell(sweep.benches[index], state.cell)
        reason = f": {record.reason}" if record.reason else ""
        progress.note(f"{state.label}: {record.status}{reason}")
        log_cell(state.cell, record, sweep.benches[index])
    return _report(sweep, sweep.states(), progress)


def sync(options: argparse.Namespace) -> Answer:
    """Pushes the offline W&B runs below `out`."""
    from evaluation.report.tracking import sync_runs

    given = dict(item.partition("=")[::2] for item in options.overrides)
    if set(given) - {"out"}:
        raise UserError("sync takes out=FOLDER and nothing else; the default is out=runs")
    root = Path(given.get("out", "runs"))
    if not root.is_dir():
        raise UserError(f"out={root}: no such folder")
    pushed = sync_runs(root)
    bad = [run for run in pushed if run.error]
    for run in bad:
        sys.stderr.write(f"{run.folder}: {run.error}\n")
    text = f"{len(pushed) - len(bad)} runs pushed, {len(bad)} failed"
    data = [{"folder": str(run.folder), "error": run.error} for run in pushed]
    return Answer(text, data, failed=bool(bad))
