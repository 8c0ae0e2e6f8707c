"""A sweep as jobs: shared stages first, then cells that wait for them, each submitted once."""

from __future__ import annotations

import dataclasses
import getpass
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cell.bench import Bench
from experiments.cell.run_cell import record_path
from experiments.cluster.estimate import minutes, seconds_per_prompt
from experiments.cluster.work import CellWork, SharedWork
from experiments.config.request import Request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.store.lock import locked
from slurm.arrays import Job
from slurm.launch import submit_arrays
from slurm.ledger import Entry, Ledger
from slurm.queue import SlurmError, find_by_name, queue_states

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """What one call put into the queue."""

    jobs: tuple[str, ...]  # Slurm's ids of the arrays
    cells: int
    in_flight: int  # cells that earlier jobs are making


def jobs_folder(root: Path) -> Path:
    return root.absolute() / "jobs"


def open_ledger(root: Path) -> Ledger:
    return Ledger(jobs_folder(root) / "ledger.jsonl")


def run_id(bench: Bench, cell: RunConfig) -> str:
    return record_path(bench, cell).parent.name


def reference_item(bench: Bench) -> str:
    parts = [bench.store.folder("images", bench.images_key("float")).name]
    trajectory = bench.trajectory_key()
    if trajectory is not None:
        parts.append(bench.store.folder("trajectory", trajectory).name)
    return "reference:" + "+".join(parts)


def calibration_item(bench: Bench) -> str:
    key = bench.calibration_key(bench.needs)
    inputs = "+inputs" if bench.needs.replay else ""
    return f"calibration:{bench.store.folder('calibration', key).name}{inputs}"


def plan_jobs(
    request: Request, benches: dict[int, Bench], pending: Sequence[int], *, running: set[str]
) -> list[Job]:
    """The jobs that make the pending cells.

    Args:
        running: items that jobs submitted earlier are making: waited for, not made again.
    """
    by_bench: dict[int, list[int]] = {}
    for index in pending:
        by_bench.setdefault(id(benches[index]), []).append(index)
    shared: list[Job] = []
    cells: list[Job] = []
    for indices in by_bench.values():
        bench = benches[indices[0]]
        group = [_absolute(request.cells[index]) for index in indices]
        each = seconds_per_prompt(bench)
        after = []
        if not bench.has_reference():
            after.append(reference_item(bench))
            if after[-1] not in running:
                shared.append(_shared_job(bench, group[0], "reference", after[-1], each))
        quantized = [cell for cell in group if _needs_calibration(bench, cell)]
        if quantized and not bench.has_calibration():
            item = calibration_item(bench)
            if item not in running:
                shared.append(_shared_job(bench, group[0], "calibration", item, each))
            plain = [cell for cell in group if cell not in quantized]
            cells += _cell_jobs(bench, plain, after=tuple(after), each=each)
            cells += _cell_jobs(bench, quantized, after=(*after, item), each=each)
        else:
            cells += _cell_jobs(bench, group, after=tuple(after), each=each)
    return [*shared, *cells]


def _absolute(cell: RunConfig) -> RunConfig:
    """A job may start in another folder."""
    return dataclasses.replace(cell, out=str(Path(cell.out).absolute()))


def _needs_calibration(bench: Bench, cell: RunConfig) -> bool:
    kinds = ("calibration", "calibration_inputs")
    return any(folder.parent.name in kinds for folder, _ in bench.pending(cell))


def _shared_job(bench: Bench, cell: RunConfig, stage: str, item: str, each: float | None) -> Job:
    settings = cell.cluster.settings(stage)
    assert settings is not None
    dataset = bench.dataset
    prompts = dataset.calibration if stage == "calibration" else dataset.evaluation
    return Job(
        items=(item,),
        work=SharedWork(config=cell, needs=bench.needs, stage=stage),
        settings=settings,
        stage=stage,
        label=f"{stage} of {cell.model.name}",
        minutes=minutes(len(prompts), each),
    )


def _cell_jobs(
    bench: Bench, cells: Sequence[RunConfig], *, after: tuple[str, ...], each: float | None
) -> list[Job]:
    """Packs of cells; where metrics have resources of their own, a second job for each pack."""
    split = [cell for cell in cells if _is_split(cell)]
    jobs = []
    for pack in _packs(bench, [cell for cell in cells if cell not in split], each):
        jobs.append(_pack_job(bench, pack, "cell", after=after, each=each))
    for pack in _packs(bench, split, each):
        images = _pack_job(bench, pack, "images", after=after, each=each)
        jobs += [images, _pack_job(bench, pack, "metrics", follows=images.items[0])]
    return jobs


def _is_split(cell: RunConfig) -> bool:
    """Whether a cell's metrics are a job of their own.

    Not where the device decides which layers run on kernels: the record says which, and only the
    device knows.
    """
    simulated = cell.execution == "simulated" or cell.device == "cpu"
    return "metrics" in cell.cluster.stages and simulated


def _pack_job(
    bench: Bench,
    pack: Sequence[RunConfig],
    stage: str,
    *,
    after: tuple[str, ...] = (),
    follows: str = "",
    each: float | None = None,
) -> Job:
    ids = [run_id(bench, cell) for cell in pack]
    part = "all" if stage == "cell" else stage
    label = ", ".join(f"{c.model.name} {c.method_name} {c.bits.name}" for c in pack)
    settings = pack[0].cluster.settings("metrics" if stage == "metrics" else "cell")
    assert settings is not None
    return Job(
        items=tuple(f"{name}:images" if stage == "images" else name for name in ids),
        work=CellWork(cells=list(pack), needs=bench.needs, part=part, run_ids=ids),
        settings=settings,
        stage=stage,
        label=label if stage == "cell" else f"{stage} of {label}",
        after=after,
        follows=follows,
        minutes=minutes(len(bench.dataset.evaluation) * len(pack), each),
    )


def _packs(
    bench: Bench, cells: Sequence[RunConfig], each: float | None
) -> list[Sequence[RunConfig]]:
    if not cells:
        return []
    cluster = cells[0].cluster
    size = cluster.cells_per_job
    if size is None:
        one = minutes(len(bench.dataset.evaluation), each)
        size = 1 if not one else max(1, int(cluster.pack_minutes / one))
    return [cells[start : start + size] for start in range(0, len(cells), size)]


def alive_items(ledger: Ledger) -> dict[str, str]:
    """Items that jobs in the queue are making, and those jobs.

    Raises:
        SlurmError: the scheduler does not answer: nothing may be submitted twice.
    """
    entries = ledger.entries(find_by_name)
    states = queue_states(entry.job for entry in entries.values())
    return {
        item: entry.job
        for item, entry in entries.items()
        if entry.job in states and states[entry.job].alive
    }


def submit(
    request: Request,
    benches: dict[int, Bench],
    pending: Sequence[int],
    *,
    root: Path,
) -> Submission:
    """Puts the pending cells into the queue, but for those that are there already.

    Raises:
        UserError: Slurm refuses or does not answer.
    """
    folder = jobs_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = open_ledger(root)
    try:
        with locked(folder / "submit.lock"):
            ledger.settle(find_by_name, folder=folder)
            running = alive_items(ledger)
            fresh = [i for i in pending if not _in_flight(benches[i], request.cells[i], running)]
            jobs = plan_jobs(request, benches, fresh, running=set(running))
            ids = [
                array.job
                for array in submit_arrays(
                    jobs, folder=folder, name=job_name(request), ledger=ledger, running=running
                )
            ]
    except SlurmError as error:
        raise UserError(str(error)) from error
    return Submission(tuple(ids), len(fresh), len(pending) - len(fresh))


def job_name(request: Request) -> str:
    """What squeue shows: who and which sweep."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"segbench-{getpass.getuser()}-{request.name}")


def _in_flight(bench: Bench, cell: RunConfig, running: dict[str, str]) -> bool:
    return run_id(bench, cell) in running


def entries_of(root: Path) -> dict[str, Entry]:
    """What the ledger knows, without asking the scheduler about open intents."""
    return open_ledger(root).entries(lambda _: None)
