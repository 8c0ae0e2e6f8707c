"""Where every cell of a sweep stands, from its record and from the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.records import Record
from experiments.cell.cell import Cell
from experiments.cell.sweep import Sweep
from experiments.cluster.sharded_stages import cell_items, missing_shards, shard_item
from experiments.cluster.submission import (
    calibration_item,
    entries_of,
    has_calibration,
    has_reference,
    reference_item,
)
from experiments.errors import UserError
from slurm.ledger import Entry
from slurm.queue import JobState, SlurmError, final_states, queue_states

STATES = ("done", "skipped", "outdated", "running", "queued", "failed", "lost", "missing")
FAILED = ("failed", "lost")
_NOISE = ("srun:", "slurmstepd:", "submitit")  # lines of a log that are not the job's own


@dataclass(frozen=True)
class CellState:
    """One cell: `lost` is a cell whose job ended without a record, `missing` was never begun."""

    cell: Cell
    state: str
    detail: str = ""
    job: str = ""
    log: str = ""
    trace: str = ""  # of a failure

    @property
    def run_id(self) -> str:
        return self.cell.run_id

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def over(self) -> bool:
        return self.state in ("done", "skipped", "outdated", *FAILED)


def states_of(sweep: Sweep) -> list[CellState]:
    """Where every cell stands; the queue is asked wherever there is one.

    Raises:
        UserError: the scheduler does not answer.
    """
    try:
        return cell_states(sweep, ask=sweep.on_slurm)
    except SlurmError as error:
        raise UserError(str(error)) from error


def cell_states(sweep: Sweep, *, ask: bool = True) -> list[CellState]:
    """The state of every cell, in the order of the request.

    Args:
        ask: whether to ask the scheduler; without, jobs are taken for over.

    Raises:
        SlurmError: the scheduler does not answer.
    """
    records = [cell.read_record() for cell in sweep.cells]
    entries = entries_of(sweep.store.root)
    open_items = {
        entries[item].job
        for cell, record in zip(sweep.cells, records, strict=True)
        if record is None or record.status == "failed" or not cell.is_current(record)
        for item in cell_items(cell)
        if item in entries
    }
    queue = queue_states(open_items) if ask else {}
    states = [
        _state(cell, record, entries=entries, queue=queue)
        for cell, record in zip(sweep.cells, records, strict=True)
    ]
    return [_blocked(state, entries) for state in _with_endings(states)]


def _blocked(state: CellState, entries: dict[str, Entry]) -> CellState:
    """Of a cell that never began, because what it waited for failed: says what that was."""
    if state.state != "lost" or Path(state.log).exists():
        return state
    waited: list[tuple[str, str]] = []
    if not has_reference(state.cell):
        waited += [*_shards(state.cell, "reference"), ("reference", reference_item(state.cell))]
    if not has_calibration(state.cell):
        item = calibration_item(state.cell)
        waited += [*_shards(state.cell, "calibration"), ("calibration", item)]
    parts = [state.detail]
    for what, item in waited:
        if item in entries:
            path = _log_path(entries[item])
            parts.append(f"{what} is not there (job {entries[item].job}): {last_words(path)}")
    return replace(state, detail="; ".join(parts))


def _shards(cell: Cell, part: str) -> list[tuple[str, str]]:
    """Those that are not there, with their items."""
    missing = missing_shards([cell], part).values()
    return [(f"{part} {shard.label}", shard_item(shard)) for shards in missing for shard in shards]


def _state(
    cell: Cell,
    record: Record | None,
    *,
    entries: dict[str, Entry],
    queue: dict[str, JobState],
) -> CellState:
    if record is not None and record.status != "failed" and cell.is_current(record):
        state = "done" if record.status == "ok" else "skipped"
        return CellState(cell, state, record.reason)
    known = [entries[item] for item in cell_items(cell) if item in entries]
    at_work = _at_work(cell, [entry.job for entry in known], queue)
    if at_work is not None:
        return at_work
    failure = cell.read_failure() if record is not None and record.status == "ok" else None
    if failure is not None:
        job_id = str(failure.environment.get("job") or "")
        log = str(_log_path(known[0])) if known and job_id else ""
        return CellState(cell, "failed", failure.reason, job_id, log, failure.traceback)
    if record is not None and record.status == "ok":
        return CellState(cell, "outdated", "metrics of other code; segbench evaluate renews them")
    unfinished = [e for e in known if e.job not in queue or queue[e.job].state != "COMPLETED"]
    last = next(iter(unfinished or known), None)
    log_path = "" if last is None else str(_log_path(last))
    if record is not None:
        job_id = str(record.environment.get("job") or "")
        log = log_path if job_id else ""
        return CellState(cell, "failed", record.reason, job_id, log, record.traceback)
    if last is None:
        return CellState(cell, "missing")
    ended = queue.get(last.job)
    return CellState(cell, "lost", ended.state if ended else "", last.job, log_path)


def _at_work(cell: Cell, jobs: Sequence[str], queue: dict[str, JobState]) -> CellState | None:
    """Of a cell with jobs in the queue: one that runs, or else the first that waits."""
    alive = {job: queue[job] for job in jobs if job in queue and queue[job].alive}
    if not alive:
        return None
    running = [job for job, state in alive.items() if state.state != "PENDING"]
    job = running[0] if running else next(iter(alive))
    detail = f"job {job} " + (
        f"on {queue[job].node}" if running else f"waits ({queue[job].reason})"
    )
    left = [shard for shards in missing_shards([cell], "images").values() for shard in shards]
    if left:
        detail += f"; {left[0].count - len(left)} of {left[0].count} shards done"
    return CellState(cell, "running" if running else "queued", detail, job)


def _with_endings(states: list[CellState]) -> list[CellState]:
    """Says of lost cells how their jobs ended: Slurm's word and the job's last one."""
    unknown = [state.job for state in states if state.state == "lost" and not state.detail]
    ends = final_states(unknown)
    told = []
    for state in states:
        if state.state == "lost":
            word = state.detail or (ends[state.job].state if state.job in ends else "")
            last = last_words(Path(state.log))
            detail = f"job {state.job} ended{f' {word}' if word else ''} without a record"
            state = replace(state, detail=f"{detail}: {last}" if last else detail)
        told.append(state)
    return told


def _log_path(entry: Entry) -> Path:
    return Path(entry.folder) / f"{entry.job}_0_log.out"


def last_words(path: Path) -> str:
    """The last line of a job's log that is its own."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    own = [line.strip() for line in lines if line.strip() and not line.startswith(_NOISE)]
    return own[-1] if own else ""


def summary(states: Sequence[CellState]) -> str:
    """`24 cells: 20 done, 3 running, 1 failed`."""
    counts = Counter(state.state for state in states)
    parts = [f"{counts[name]} {name}" for name in STATES if counts[name]]
    return f"{len(states)} cells: " + ", ".join(parts)


def render(states: Sequence[CellState]) -> str:
    """A line a cell, the failed ones with their reason, and the sum."""
    width = max(len(state.label) for state in states)
    lines = []
    for state in states:
        detail = f"  {state.detail}" if state.detail else ""
        lines.append(f"{state.label:<{width}}  {state.state:<8}{detail}".rstrip())
    return "\n".join([*lines, summary(states)])


def tracebacks(states: Sequence[CellState]) -> str:
    """Of every failed cell its traceback, or where its log lies."""
    parts = []
    for state in states:
        if state.state not in FAILED:
            continue
        text = state.trace.rstrip()
        where = f"log: {state.log}" if state.log else ""
        parts.append("\n".join(filter(None, [f"-- {state.label}: {state.detail}", text, where])))
    return "\n".join(parts)


def any_failed(states: Sequence[CellState]) -> bool:
    return any(state.state in FAILED for state in states)
