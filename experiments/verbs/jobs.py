"""A sweep as jobs: what `run` and `retry` do where the cluster's config names jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from evaluation.records import encode_record
from experiments.cell.sweep import Sweep
from experiments.cluster.elsewhere import follow, pending_cells, record_lost, run_processes
from experiments.cluster.estimate import hours
from experiments.cluster.states import FAILED, CellState, any_failed, states_of, tracebacks
from experiments.cluster.submission import Submission, job_name, jobs_folder, plan_jobs, submit
from experiments.errors import UserError
from experiments.store.entries import ensure_folder
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import write_report
from slurm.arrays import Job, plan_arrays
from slurm.launch import preview
from slurm.queue import SlurmError


def run_as_jobs(sweep: Sweep, watch: bool, *, only: set[str] | None = None) -> Answer:
    """Runs a sweep as jobs. On Slurm the answer comes at once unless `watch` is set."""
    root = sweep.store.root.absolute()
    ensure_folder(jobs_folder(root), below=root)
    pending = pending_cells(sweep, only=only)
    if not sweep.on_slurm:
        return report_states(sweep, run_processes(sweep, pending))
    if pending:
        submission = submit(sweep, pending)
        sweep.progress.note(_say(submission))
        if not watch:
            return Answer(f"{_say(submission)}\n{_hint(sweep)}", asdict(submission))
    states = follow(sweep, note=sweep.progress.note)
    record_lost(states)
    return report_states(sweep, states)


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


def report_states(sweep: Sweep, states: Sequence[CellState]) -> Answer:
    """The report of what is there when a call ends, with the failed cells' tracebacks."""
    records = sweep.records()
    report = write_report(sweep, records)
    for path in report.files:
        sweep.progress.note(f"wrote {path}")
    trouble = tracebacks(states)
    if trouble:
        sweep.progress.note(trouble)
    failed = any_failed(states) or any(record.status == "failed" for record in records)
    return Answer(report.markdown, [encode_record(record) for record in records], failed=failed)


def describe_jobs(sweep: Sweep) -> Answer:
    """What `run` would submit: jobs, resources, hours, and the text that sbatch gets."""
    pending = [
        state.cell
        for state in states_of(sweep)
        if state.cell.refused is None and state.state in ("missing", "outdated", *FAILED)
    ]
    jobs = plan_jobs(pending, running=set())
    if not sweep.on_slurm:
        arrays = [(array, "") for array in plan_arrays(jobs, max_array_size=len(jobs) or 1)]
    else:
        try:
            arrays = preview(jobs, folder=jobs_folder(sweep.store.root), name=job_name(sweep))
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
                "hours": hours(array.jobs),
                "sbatch": text,
            }
        )
    total = hours(jobs)
    lines.append(f"{len(jobs)} jobs, {_hours(total)} in all")
    return Answer("\n".join(lines), {"arrays": data, "hours": total})


def _describe_array(index: int, stage: str, jobs: Sequence[Job], parallel: int) -> str:
    ask = jobs[0].settings
    where = f" in {ask.partition}" if ask.partition else ""
    return (
        f"array {index}: {len(jobs)} x {stage}{where}, {parallel} at a time; each {ask.cpus} CPUs, "
        f"{ask.memory_gb} GB, {ask.gpus} GPUs, at most {ask.timeout_minutes} min; "
        f"{_hours(hours(jobs))}"
    )


def _hours(value: float | None) -> str:
    if value is None:
        return "hours unknown until one cell has run"
    return f"about {value:.2f} hours"
