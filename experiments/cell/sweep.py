"""From a command line to cells, and through them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.records import Record
from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.run_cell import find_record, run_cell
from experiments.config.catalogue import bits_of
from experiments.config.request import Request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.sampling.pipelines import check_folder, check_weights
from experiments.store.folders import Store
from segquant.core.method_interface import StatisticsNeeds

log = logging.getLogger(__name__)

_BYTES_PER_PIXEL = 4  # an upper bound of a PNG, for the check of the disk
_SPARE_BYTES = 200_000_000  # checkpoints and statistics of the tiny models


def no_record(request: Request, store: Store) -> UserError:
    """For a verb that reads records and finds none."""
    return UserError(
        f"{store.root} holds no finished cell of {request.name}; run the same words with segbench "
        f"run first, or give out=FOLDER"
    )


def union_of_needs(cells: Sequence[RunConfig]) -> StatisticsNeeds:
    """What one calibration must record to serve every cell."""
    needs = StatisticsNeeds(rows=1)
    for cell in cells:
        if cell.method.unsupported(cell.bits) is None:
            needs = needs.union(cell.method.needs())
    return needs


@dataclass(frozen=True)
class Plan:
    """What is there and what is to do."""

    states: tuple[str, ...]  # per cell: done, skip or run
    prompts: int  # still to be sampled, calibration included


def make_benches(request: Request, store: Store, progress: Progress) -> dict[int, Bench]:
    """One bench per distinct model, dataset and metrics; per cell by its index."""
    benches: dict[str, Bench] = {}
    by_cell: dict[int, Bench] = {}
    for index, cell in enumerate(request.cells):
        shared = repr(_surroundings(cell))
        if shared not in benches:
            alike = [c for c in request.cells if repr(_surroundings(c)) == shared]
            jobs = cell.cluster.jobs
            benches[shared] = Bench(
                config=cell,
                store=store,
                progress=progress,
                needs=union_of_needs(alike),
                samples=jobs is None or jobs.executor == "local",
            )
        by_cell[index] = benches[shared]
    return by_cell


def _surroundings(cell: RunConfig) -> tuple[object, ...]:
    """What the cells of one bench have in common."""
    sampling = (cell.seed, cell.device, cell.latents, cell.image)
    return (cell.model, cell.dataset, cell.metrics, *sampling)


def make_plan(request: Request, benches: dict[int, Bench]) -> Plan:
    """Looks into the store; runs nothing and loads no weights."""
    states: list[str] = []
    folders: set[Path] = set()
    prompts = 0
    for index, cell in enumerate(request.cells):
        bench = benches[index]
        if find_record(bench, cell) is not None:
            states.append("done")
            continue
        if cell.method.unsupported(cell.bits) is not None:
            states.append("skip")
            continue
        states.append("run")
        for folder, count in bench.pending(cell):
            if folder not in folders:
                folders.add(folder)
                prompts += count
    return Plan(tuple(states), prompts)


Finished = Callable[[RunConfig, Record, Bench, bool], None]


def run_request(
    request: Request, *, progress: Progress, benches: dict[int, Bench], finished: Finished
) -> list[Record]:
    """Runs every cell in this process; a failed one does not stop the rest.

    Args:
        finished: told of every cell, its record, its bench and whether it was made now.
    """
    records = []
    for index, cell in enumerate(request.cells):
        bench = benches[index]
        progress.cell(f"{cell.model.name} {cell.method_name} {cell.bits.name}")
        known = find_record(bench, cell)
        record = known or run_cell(bench, cell)
        records.append(record)
        finished(cell, record, bench, known is None)
    return records


def check_request(request: Request, benches: dict[int, Bench], store: Store) -> None:
    """Everything that can be known to be wrong before the first second is spent.

    Raises:
        UserError: a folder that is no pipeline or lacks weights, a device that is not there, an
            output folder that cannot be written or lacks room.
    """
    reasons = [cell.method.unsupported(cell.bits) for cell in request.cells]
    if all(reason is not None for reason in reasons):
        cell = request.cells[0]
        allowed = bits_of(cell.method)
        raise UserError(
            f"method={cell.method_name} does not do bits={cell.bits.name}: {reasons[0]} "
            f"({'it does ' + ', '.join(allowed) if allowed else 'here it does none'})"
        )
    pixels = 0
    for index, cell in enumerate(request.cells):
        bench = benches[index]
        _ = bench.device, bench.dataset
        check_weights(check_folder(cell.model))
        _ = bench.evaluator_key
        side = (cell.model.height or 1024) * (cell.model.width or 1024)
        pixels += cell.dataset.evaluation_prompts * side
    store.prepare(needed_bytes=pixels * _BYTES_PER_PIXEL + _SPARE_BYTES)
