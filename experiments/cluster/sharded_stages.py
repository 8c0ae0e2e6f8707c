"""Which stages jobs make in shards, what of them is not there yet, and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.cell.calibration_inputs import CalibrationInputs
from experiments.cell.calibration_pass import calibration_of
from experiments.cell.cell import Cell
from experiments.cell.corrected_denoiser import CorrectedDenoiser
from experiments.cell.shards import Shard, Sharded, shards_of
from experiments.cell.stage import Stage


def sharded_stages(cell: Cell, part: str) -> list[Sharded]:
    """What may be made in shards of a `reference`, a `calibration`, or a cell's own `images`."""
    around = cell.around
    if part == "reference":
        return [cell.reference]
    if part == "calibration":
        inputs = [CalibrationInputs(around=around)] if around.needs.replay else []
        return [calibration_of(around), *inputs]
    return [] if cell.images.hash == cell.reference.hash else [cell.images]


def missing_shards(cells: Sequence[Cell], part: str) -> dict[int, list[Shard]]:
    """Number -> shards that are not there, of stages that are not there; empty without shards."""
    missing: dict[int, list[Shard]] = {}
    for cell in cells:
        for stage in sharded_stages(cell, part):
            if stage.find() is not None:
                continue
            for shard in shards_of(stage):
                if shard.find() is None:
                    missing.setdefault(shard.number, []).append(shard)
    return dict(sorted(missing.items()))


def build_shard(cell: Cell, part: str, number: int) -> None:
    """Makes the shard with that number of every stage that is not there and has as many."""
    for stage in sharded_stages(cell, part):
        shards = shards_of(stage)
        if stage.find() is None and number < len(shards):
            shards[number].build()


def shard_item(shard: Shard) -> str:
    """What the ledger calls it."""
    return f"shard:{shard.hash}"


def before_images(cell: Cell) -> list[Stage]:
    """What all shards of a cell's images read: it is made once, before they begin."""
    if cell.quantized is None:
        return []
    denoiser = cell.denoiser
    learned = [denoiser.corrector] if isinstance(denoiser, CorrectedDenoiser) else []
    return [cell.quantized, *learned]


def is_prepared(cell: Cell) -> bool:
    return all(stage.find() is not None for stage in before_images(cell))


def cell_items(cell: Cell) -> list[str]:
    """What jobs may be making of a cell: what is not there of its shards first, then itself."""
    name = cell.run_id
    shards = [one for some in missing_shards([cell], "images").values() for one in some]
    prepared = [] if not shards or is_prepared(cell) else [f"{name}:quantized"]
    return [*prepared, *map(shard_item, shards), f"{name}:images", name]
