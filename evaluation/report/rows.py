"""Rows: the cells of one setting under several calibration draws are one row, compared in pairs.

Shapes: C calibration draws, N prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluation.metrics.step_error import ENTRIES_BEGIN
from evaluation.records import Metric, Record
from evaluation.statistics import Array, crossed_mean, metric_from_estimate

FLOAT_METHOD = "fp"
FLOOR_METHOD = "noise_floor"
UNQUANTIZED = (FLOAT_METHOD, FLOOR_METHOD)
FEWEST_DRAWS = 3  # calibration draws that a statement on a method, not on a draw, needs
CALIBRATION_DRAWS = "calibration_draws"  # protocol field of a row that is of several
DRAW = "calibration_prompts_hash"  # protocol field: which draw a cell is of
# what rows must share to be compared, where a record states it
SHARED_PROTOCOL_FIELDS = (
    "protocol_hash",
    "model_weights",
    "revision",
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "call",
    "resolution",
    "height",
    "width",
    "dtype",
    "prompts_hash",
    "seed_rule",
    "image_format",
    "evaluator",
)

Scores = Mapping[str, Mapping[str, float]]  # per-image column -> prompt id -> value


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A cell's record with its metrics prompt by prompt."""

    record: Record
    scores: Scores = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Cells that differ in nothing but the calibration draw; `record` speaks for all of them."""

    record: Record
    cells: tuple[Scored, ...]

    @property
    def draws(self) -> int:
        return len(self.cells)

    @property
    def calibrated(self) -> bool:
        return self.record.method not in UNQUANTIZED

    def by_draw(self) -> dict[str, Scored]:
        return {_draw(cell.record): cell for cell in self.cells}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One column of two rows, (C, N) each, of the draws and prompts that both have.

    Prompts whose image is identical to the reference's in either row are left out, as an infinity
    leaves nothing to subtract; `identical` counts them for each of the two.
    """

    a_CN: Array
    b_CN: Array
    identical: tuple[int, int]

    @property
    def prompts(self) -> int:
        return int(self.a_CN.shape[1])


def comparability(record: Record) -> dict[str, Any]:
    """What must be equal for two rows of one model to be compared."""
    shared = {
        name: record.protocol[name] for name in SHARED_PROTOCOL_FIELDS if name in record.protocol
    }
    return {
        "dataset": record.dataset,
        "n": sample_size(record),
        "seed": record.seed,
        **shared,
    }


def setting(record: Record) -> str:
    """The same as a hash."""
    text = json.dumps([record.model, comparability(record)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sample_size(record: Record) -> int | None:
    """The number of images behind most metrics; None where nothing was measured."""
    sizes = Counter(
        metric.n
        for name, metric in record.metrics.items()
        if metric.value is not None and not name.startswith(ENTRIES_BEGIN)
    )
    return sizes.most_common(1)[0][0] if sizes else None


def pool(cells: Sequence[Scored], *, columns: Mapping[str, str]) -> list[Pooled]:
    """Rows in the order of their first cells; a cell that is there twice counts once.

    Args:
        columns: metric -> per-image column, for intervals that cross draws with prompts.
    """
    groups: dict[str, dict[str, Scored]] = {}
    for cell in cells:
        groups.setdefault(_row_key(cell.record), {}).setdefault(_draw(cell.record), cell)
    return [_pooled(tuple(group.values()), columns=columns) for group in groups.values()]


def pair(a: Pooled, b: Pooled, column: str) -> Pair | None:
    """None where a row has no such scores.

    A row that nothing was calibrated for stands beside every draw of the other.

    Raises:
        ValueError: other prompts, or no calibration draw in common.
    """
    mine, theirs = _drawn_together(a, b)
    if not all(cell.scores.get(column) for cell in (*mine, *theirs)):
        return None
    ids = list(theirs[0].scores[column])
    for cell in (*mine, *theirs):
        differing = sorted(set(ids) ^ set(cell.scores[column]))
        if differing:
            raise ValueError(
                f"{a.record.model} {a.record.method_label} and {b.record.method_label} were "
                f"measured on different prompts ({len(differing)} in one only, such as "
                f"{differing[0]}); compare rows of one request"
            )
    a_CN, b_CN = (
        np.array([[cell.scores[column][name] for name in ids] for cell in cells])
        for cells in (mine, theirs)
    )
    lost_a, lost_b = (~np.isfinite(table).all(axis=0) for table in (a_CN, b_CN))
    kept = ~(lost_a | lost_b)
    return Pair(
        a_CN=a_CN[:, kept], b_CN=b_CN[:, kept], identical=(int(lost_a.sum()), int(lost_b.sum()))
    )


def _drawn_together(a: Pooled, b: Pooled) -> tuple[list[Scored], list[Scored]]:
    if not (a.calibrated and b.calibrated):
        count = max(a.draws, b.draws)
        mine, theirs = (
            list(row.cells) if row.draws == count else [row.cells[0]] * count for row in (a, b)
        )
        return mine, theirs
    my_draws, their_draws = a.by_draw(), b.by_draw()
    shared = [name for name in their_draws if name in my_draws]
    if not shared:
        raise ValueError(
            f"{a.record.model} {a.record.method_label} and {b.record.method_label} have no "
            "calibration draw in common; run both with the same dataset.calibration_seed"
        )
    return [my_draws[name] for name in shared], [their_draws[name] for name in shared]


def _row_key(record: Record) -> str:
    """All that tells rows apart but the draw."""
    parts = [
        setting(record),
        record.method_label,
        record.bits_label,
        record.settings,
        record.status,
        record.reason,
        record.protocol.get("calibration_prompts"),
    ]
    if record.method in UNQUANTIZED:
        parts[-1] = None
    return json.dumps(parts, sort_keys=True, default=str)


def _draw(record: Record) -> str:
    if record.method in UNQUANTIZED or record.status != "ok":
        return ""
    return str(record.protocol.get(DRAW, ""))


def _pooled(cells: tuple[Scored, ...], *, columns: Mapping[str, str]) -> Pooled:
    first = cells[0].record
    if len(cells) == 1:
        return Pooled(record=first, cells=cells)
    metrics = {
        name: _over_draws(cells, name, column=columns.get(name, name)) for name in first.metrics
    }
    protocol = {**first.protocol, CALIBRATION_DRAWS: len(cells)}
    return Pooled(record=replace(first, metrics=metrics, protocol=protocol), cells=cells)


def _over_draws(cells: Sequence[Scored], name: str, *, column: str) -> Metric:
    """The mean over draws; with its interval where there are scores image by image."""
    first = cells[0].record.metrics[name]
    several = [cell.record.metrics.get(name) for cell in cells]
    values = [metric.value for metric in several if metric is not None and metric.value is not None]
    if not values:
        return first
    if len(values) < len(cells):
        reason = f"not measured for {len(cells) - len(values)} of {len(cells)} calibration draws"
        return replace(
            first, value=None, standard_error=None, interval=None, interval_kind="", note=reason
        )
    mean = replace(
        first, value=float(np.mean(values)), standard_error=None, interval=None, interval_kind=""
    )
    scores = [cell.scores.get(column, {}) for cell in cells]
    if not scores[0] or any(set(one) != set(scores[0]) for one in scores):
        return mean
    table_CN = np.array([[one[key] for key in scores[0]] for one in scores])
    table_CN = table_CN[:, np.isfinite(table_CN).all(axis=0)]
    if not table_CN.shape[1]:
        return mean
    crossed = metric_from_estimate(
        crossed_mean(table_CN),
        higher_is_better=first.higher_is_better,
        against=first.against,
        note=first.note,
        unit=first.unit,
    )
    crossed.n = first.n
    if first.interval_kind == "sd" and crossed.standard_error is not None:
        assert crossed.value is not None
        sd = crossed.standard_error
        crossed.interval = [crossed.value - sd, crossed.value + sd]
        crossed.interval_kind = "sd"
    return crossed
