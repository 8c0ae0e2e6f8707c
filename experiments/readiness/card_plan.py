"""How a cell fits a card: the least offload, and the memory for statistics that is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation.report.markdown import pipe_table
from experiments.errors import UserError
from experiments.planning.memory_plan import StageMemory
from experiments.readiness.stage_costs import planned_stages

if TYPE_CHECKING:
    from experiments.cell.cell import Cell

SPARE = 0.08  # of a card: the context, libraries, what the allocator cannot use
_OFFLOADS = ("none", "model", "blocks")
_LEAST_STATISTICS = 0.5  # GB
_BESIDE_STATISTICS = ("weights", "forward", "other parts")  # of a calibration, on the card
_FINER = 0.9  # of what statistics may take, from try to try


@dataclass(frozen=True, kw_only=True)
class CardPlan:
    """Settings with which every stage fits, and what each takes then."""

    model: str
    method: str
    bits: str
    card_gigabytes: float
    offload: str
    statistics_gigabytes: float | None
    stages: tuple[StageMemory, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row a stage."""
        head = {
            "model": self.model,
            "method": self.method,
            "bits": self.bits,
            "card_gigabytes": self.card_gigabytes,
            "offload": self.offload,
            "statistics_gigabytes": self.statistics_gigabytes,
        }
        return [
            {
                **head,
                "stage": stage.stage,
                "device_gigabytes": round(stage.device_bytes / 1e9, 2),
                "host_gigabytes": round(stage.host_bytes / 1e9, 2),
                "disk_gigabytes": round(stage.disk_bytes / 1e9, 2),
                "parts": {part: round(size / 1e9, 2) for part, size in stage.parts.items()},
            }
            for stage in self.stages
        ]

    def describe(self) -> str:
        """The settings as words of a run, and a table of stages."""
        words = [f"model={self.model}", f"method={self.method}", f"bits={self.bits}"]
        words += [f"model.offload={self.offload}"] if self.offload != "none" else []
        if self.statistics_gigabytes is not None:
            words.append(f"statistics_gigabytes={self.statistics_gigabytes:g}")
        head = ["stage", "device GB", "host GB", "disk GB", "of which"]
        body = [
            [
                row["stage"],
                *(f"{row[f'{kind}_gigabytes']:.2f}" for kind in ("device", "host", "disk")),
                ", ".join(f"{part} {size:.2f}" for part, size in row["parts"].items()),
            ]
            for row in self.rows()
        ]
        table = pipe_table(head, body, numeric=[False, True, True, True, False])
        return f"a card of {self.card_gigabytes:g} GB: segbench run {' '.join(words)}\n\n{table}"


def plan_for_card(cell: Cell, *, gigabytes: float) -> CardPlan:
    """The plan with the least offload, and with as few passes of the calibration as fit.

    Args:
        gigabytes: of the card, 10^9 bytes each; a part of it stays free (`SPARE`).

    Raises:
        UserError: the model's shapes are not known here, or nothing fits.
    """
    room = gigabytes * (1 - SPARE)
    for offload in _OFFLOADS:
        for budget in _budgets(cell, offload=offload, room=room):
            try:
                stages = planned_stages(cell, on_cpu=False, offload=offload, gigabytes=budget)
            except ValueError:
                break  # one layer's statistics are more than that
            if not stages:
                raise UserError(
                    f"model={cell.config.model.name}: its shapes are not known here; segbench "
                    "fetch brings them"
                )
            if max(stage.device_bytes for stage in stages.values()) <= room * 1e9:
                model, method, bits = cell.names
                return CardPlan(
                    model=model,
                    method=method,
                    bits=bits,
                    card_gigabytes=gigabytes,
                    offload=offload,
                    statistics_gigabytes=budget,
                    stages=tuple(stages.values()),
                )
    raise UserError(
        f"{cell.label} fits no card of {gigabytes:g} GB, not even block by block; lower "
        "model.batch_size, model.height and model.width, or take a larger card"
    )


def _budgets(cell: Cell, *, offload: str, room: float) -> Iterator[float | None]:
    """No limit first, then what is left beside the rest, and ever less."""
    given = cell.config.statistics_gigabytes
    if given is not None:
        yield given
        return
    yield None
    stages = planned_stages(cell, on_cpu=False, offload=offload, gigabytes=None)
    if "calibration" not in stages:
        return
    parts = stages["calibration"].parts
    beside = sum(size for part, size in parts.items() if part in _BESIDE_STATISTICS) / 1e9
    rows = parts.get("rows", 0) / 1e9  # the budget is for both memories
    budget = round(max(0.0, room - beside) + rows, 1)
    while budget > _LEAST_STATISTICS:
        yield budget
        budget = round(budget * _FINER, 1)
