"""A sweep as jobs: shared stages first, then cells that wait for them, each submitted once."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import CalibrationStatistics, calibration_of
from experiments.cell.cell import Cell
from experiments.cell.sweep import Sweep, absolute
from experiments.cluster.estimate import minutes, seconds_per_prompt
from experiments.cluster.sharded_stages import is_prepared, missing_shards, shard_item
from experiments.cluster.work import CellWork, SharedWork
from experiments.errors import UserError
from experiments.store.lock import locked
from slurm.arrays import Job
from slurm.launch import submit_arrays
from slurm.ledger import Entry, Ledger
from slurm.queue import SlurmError, find_by_name, queue_states

# Jobs of a stage are submitted after those that they may wait for.
_ORDER = (
    *("reference-shard", "calibration-shard", "reference", "calibration"),
    *("quantize", "images-shard", "cell", "images", "metrics"),
)
_SUFFIXES = {"images": ":images", "quantize": ":quantized"}  # of a cell's item in the ledger
_PARTS = {"cell": "all", "images-shard": "shard"}  # of CellWork, where not the stage's own name


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


def reference_item(cell: Cell) -> str:
    """What the ledger calls the job that makes the reference's stages."""
    stages = [cell.reference, cell.trajectory]
    return "reference:" + "+".join(stage.hash for stage in stages if stage is not None)


def calibration_item(cell: Cell) -> str:
    around = cell.around
    name = CalibrationStatistics(around=around, needs=around.needs).hash
    return f"calibration:{name}{'+inputs' if around.needs.replay else ''}"


def has_reference(cell: Cell) -> bool:
    """Whether the reference's images and trajectory are there."""
    stages = [cell.reference, cell.trajectory]
    return all(stage.find() is not None for stage in stages if stage is not None)


def has_calibration(cell: Cell) -> bool:
    """Whether the statistics are there, and the inputs where a method of the sweep replays them."""
    around = cell.around
    return calibration_of(around).find() is not None and (
        not around.needs.replay or CalibrationInputs(around=around).find() is not None
    )


def plan_jobs(cells: Sequence[Cell], *, running: set[str]) -> list[Job]:
    """The jobs that make cells that are not there.

    Args:
        running: items that jobs submitted earlier are making: waited for, not made again.
    """
    groups: dict[int, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(id(cell.around), []).append(cell)
    jobs: list[Job] = []
    for group in groups.values():
        first = group[0]
        each = seconds_per_prompt(first.around)
        after = []
        if not has_reference(first):
            after.append(reference_item(first))
            if after[-1] not in running:
                jobs += _shared_jobs(first, "reference", after[-1], running=running, each=each)
        quantized = [cell for cell in group if _needs_calibration(cell)]
        others = [cell for cell in group if cell not in quantized]
        jobs += _cell_jobs(others, after=tuple(after), running=running, each=each)
        if quantized and not has_calibration(first):
            after.append(calibration_item(first))
            if after[-1] not in running:
                jobs += _shared_jobs(first, "calibration", after[-1], running=running, each=each)
        jobs += _cell_jobs(quantized, after=tuple(after), running=running, each=each)
    return sorted(jobs, key=lambda job: _ORDER.index(job.stage))


def _needs_calibration(cell: Cell) -> bool:
    calibrating = (CalibrationStatistics, CalibrationInputs)
    return any(isinstance(stage, calibrating) for stage, _ in cell.pending())


def _shared_jobs(
    cell: Cell, stage: str, item: str, *, running: set[str], each: float | None
) -> list[Job]:
    """The job that makes a shared stage; before it, where it is made in shards, these."""
    settings = cell.config.cluster.settings(stage)
    assert settings is not None
    dataset = cell.around.dataset
    prompts = dataset.calibration if stage == "calibration" else dataset.evaluation
    config, needs = absolute(cell.config), cell.around.needs
    missing = missing_shards([cell], stage)
    whole = Job(
        items=(item,),
        work=SharedWork(config=config, needs=needs, stage=stage),
        settings=settings,
        stage=stage,
        label=f"{stage} of {cell.config.model.name}",
        after=tuple(shard_item(shard) for shards in missing.values() for shard in shards),
        minutes=minutes(0 if missing else len(prompts), each),
    )
    jobs = [
        Job(
            items=tuple(map(shard_item, shards)),
            work=SharedWork(config=config, needs=needs, stage=stage, shard=number),
            settings=settings,
            stage=f"{stage}-shard",
            label=f"{stage} {shards[0].label} of {cell.config.model.name}",
            minutes=minutes(-(-len(prompts) // shards[0].count), each),
        )
        for number, shards in missing.items()
    ]
    return [*(job for job in jobs if not running.issuperset(job.items)), whole]


def _cell_jobs(
    cells: Sequence[Cell], *, after: tuple[str, ...], running: set[str], each: float | None
) -> list[Job]:
    """Packs of cells; where metrics have resources of their own, a second job for each pack."""
    split = [cell for cell in cells if _is_split(cell)]
    whole = [cell for cell in cells if not _is_split(cell)]
    jobs: list[Job] = []
    for pack in _packs(whole, each):
        jobs += _pack_jobs(pack, "cell", after=after, running=running, each=each)
    for pack in _packs(split, each):
        images = _pack_jobs(pack, "images", after=after, running=running, each=each)
        jobs += [*images, _pack_job(pack, "metrics", follows=images[-1].items[0])]
    return jobs


def _pack_jobs(
    pack: Sequence[Cell],
    stage: str,
    *,
    after: tuple[str, ...],
    running: set[str],
    each: float | None,
) -> list[Job]:
    """The job of a pack; before it, where images are made in shards, what they need, and these."""
    missing = missing_shards(pack, "images")
    if not missing:
        return [_pack_job(pack, stage, after=after, each=each)]
    jobs: list[Job] = []
    unprepared = [cell for cell in pack if not is_prepared(cell)]
    if unprepared:
        jobs.append(_pack_job(unprepared, "quantize", after=after, each=each))
        after = (*after, *jobs[0].items)
    items = [tuple(map(shard_item, shards)) for shards in missing.values()]
    jobs += [
        replace(
            _pack_job(pack, "images-shard", after=after, each=each, shard=number),
            items=names,
            label=f"images {missing[number][0].label} of {_label(pack)}",
        )
        for number, names in zip(missing, items, strict=True)
    ]
    waits = (*after, *(name for names in items for name in names))
    kept = [job for job in jobs if not running.issuperset(job.items)]
    return [*kept, _pack_job(pack, stage, after=waits, each=each, sampled=False)]


def _is_split(cell: Cell) -> bool:
    """Whether a cell's metrics are a job of their own.

    Not where the device decides which layers run on kernels: the record says which, and only the
    device knows.
    """
    simulated = cell.config.execution == "simulated" or cell.config.device == "cpu"
    return "metrics" in cell.config.cluster.stages and simulated


def _pack_job(
    pack: Sequence[Cell],
    stage: str,
    *,
    after: tuple[str, ...] = (),
    follows: str = "",
    each: float | None = None,
    shard: int | None = None,
    sampled: bool = True,
) -> Job:
    """One job of a pack.

    Args:
        shard: of the images, by number.
        sampled: whether the job samples the images; shards may have.
    """
    first = pack[0]
    ids = [cell.run_id for cell in pack]
    settings = first.config.cluster.settings("metrics" if stage == "metrics" else "cell")
    assert settings is not None
    samples = sampled and stage != "quantize"
    prompts = len(first.around.dataset.evaluation) * len(pack) if samples else 0
    parts = 1 if shard is None else first.config.cluster.shards
    suffix = _SUFFIXES.get(stage, "")
    return Job(
        items=tuple(f"{name}{suffix}" for name in ids),
        work=CellWork(
            cells=[absolute(cell.config) for cell in pack],
            needs=first.around.needs,
            part=_PARTS.get(stage, stage),
            run_ids=ids,
            shard=shard,
        ),
        settings=settings,
        stage=stage,
        label=_label(pack) if stage == "cell" else f"{stage} of {_label(pack)}",
        after=after,
        follows=follows,
        minutes=minutes(-(-prompts // parts), each),
    )


def _label(pack: Sequence[Cell]) -> str:
    return ", ".join(cell.label for cell in pack)


def _packs(cells: Sequence[Cell], each: float | None) -> list[Sequence[Cell]]:
    if not cells:
        return []
    cluster = cells[0].config.cluster
    size = cluster.cells_per_job
    if size is None:
        prompts = -(-len(cells[0].around.dataset.evaluation) // cluster.shards)
        one_cell = minutes(prompts, each)
        size = 1 if not one_cell else max(1, int(cluster.pack_minutes / one_cell))
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


def submit(sweep: Sweep, pending: Sequence[Cell]) -> Submission:
    """Puts the pending cells into the queue, but for those that are there already.

    Raises:
        UserError: Slurm refuses or does not answer.
    """
    folder = jobs_folder(sweep.store.root)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = open_ledger(sweep.store.root)
    try:
        with locked(folder / "submit.lock"):
            ledger.settle(find_by_name, folder=folder)
            running = alive_items(ledger)
            fresh = [cell for cell in pending if cell.run_id not in running]
            jobs = plan_jobs(fresh, running=set(running))
            ids = [
                array.job
                for array in submit_arrays(
                    jobs, folder=folder, name=job_name(sweep), ledger=ledger, running=running
                )
            ]
    except SlurmError as error:
        raise UserError(str(error)) from error
    return Submission(tuple(ids), len(fresh), len(pending) - len(fresh))


def job_name(sweep: Sweep) -> str:
    """What squeue shows: who and which sweep."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"segbench-{getpass.getuser()}-{sweep.name}")


def entries_of(root: Path) -> dict[str, Entry]:
    """What the ledger knows, without asking the scheduler about open intents."""
    return open_ledger(root).entries(lambda _: None)
