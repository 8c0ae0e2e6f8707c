"""What may be said of the cells of a table: marks and bold, all by differences prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.power import images_needed
from evaluation.records import Metric
from evaluation.report.columns import Cell, Column
from evaluation.report.rows import FEWEST_DRAWS, Pair, Pooled, pair
from evaluation.statistics import Estimate, holm, paired_interval

MARK_FLOOR = "~"
MARK_BELOW_FLOAT = "↓fp"


@dataclass(kw_only=True)
class Row:
    """One line of a table; `kind` is "float", "floor", "method" or "missing"."""

    pooled: Pooled
    kind: str
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A cell that is the best of its bits, with p-values against each of its rivals.

    `needed`: images that would tell it from the next; None where no number would, or several draws
    say how many of these it takes.
    """

    cell: Cell
    p_values: tuple[float, ...]
    draws: int  # the fewest of it and its rivals
    title: str = ""  # of the column
    needed: int | None = None


def mark_metrics(rows: Sequence[Row], *, columns: Sequence[Column]) -> list[Winner]:
    """Marks rows of one setting; gives back what may be bold, which the whole table decides."""
    by_kind = {row.kind: row for row in reversed(rows)}
    winners = []
    for index, column in enumerate(columns):
        if column.metric is None:
            continue
        methods = [row for row in rows if row.kind == "method" and _value(row, column) is not None]
        for row in methods:
            row.cells[index].marks += _marks(
                row, floor=by_kind.get("floor"), unquantized=by_kind.get("float"), column=column
            )
        for bits in dict.fromkeys(row.pooled.record.bits_label for row in methods):
            same = [row for row in methods if row.pooled.record.bits_label == bits]
            if winner := _winner(same, index=index, column=column):
                winners.append(winner)
    return winners


def embolden(winners: Sequence[Winner]) -> None:
    """Of what is best, what is better than each rival with the chance of one error at 5 % in all.

    A difference that was seen for one calibration draw is a statement on that draw: fewer than
    `FEWEST_DRAWS` make nothing bold.
    """
    p_values = {
        f"{number} {rival}": p
        for number, winner in enumerate(winners)
        for rival, p in enumerate(winner.p_values)
    }
    judged = holm(p_values)
    for number, winner in enumerate(winners):
        clear = all(judged[f"{number} {rival}"].rejected for rival in range(len(winner.p_values)))
        winner.cell.bold = clear and winner.draws >= FEWEST_DRAWS


def _value(row: Row, column: Column) -> float | None:
    metric = _metric(row, column)
    return None if metric is None else metric.value


def _metric(row: Row, column: Column) -> Metric | None:
    return row.pooled.record.metrics.get(column.metric or "")


def _marks(row: Row, *, floor: Row | None, unquantized: Row | None, column: Column) -> list[str]:
    marks = []
    if floor is not None and _is_noise(row, floor=floor, unquantized=unquantized, column=column):
        marks.append(MARK_FLOOR)
    if column.shift_below_unquantized and unquantized is not None:
        difference = _difference(row, unquantized, column)
        if difference is not None and difference.high < 0:
            marks.append(MARK_BELOW_FLOAT)
    return marks


def _is_noise(row: Row, *, floor: Row, unquantized: Row | None, column: Column) -> bool:
    """See the legend of `MARK_FLOOR`; False where it cannot be known."""
    metric = _metric(row, column)
    if metric is None or metric.higher_is_better is None:
        return False
    if metric.against == "reference":
        pair_ = _pair(row, floor, column)
        if pair_ is None:
            return False
        if not pair_.prompts:
            return pair_.identical[0] >= pair_.identical[1]
        found, _ = paired_interval(pair_.a_CN, pair_.b_CN)
        return found.high >= 0 if metric.higher_is_better else found.low <= 0
    if unquantized is None:
        return False
    mine, noise = (_difference(one, unquantized, column) for one in (row, floor))
    if mine is None or noise is None:
        return False
    return _reach(mine) <= _reach(noise)


def _reach(estimate: Estimate) -> float:
    return max(abs(estimate.low), abs(estimate.high))


def _winner(rows: Sequence[Row], *, index: int, column: Column) -> Winner | None:
    """The best of one bit-width, unless its rank cannot be told or is a mere shift."""
    better = {metric.higher_is_better for row in rows if (metric := _metric(row, column))}
    if len(rows) < 2 or len(better) > 1 or None in better:
        return None
    sign = 1 if better == {True} else -1
    best = max(rows, key=lambda row: sign * (_value(row, column) or 0.0))
    if MARK_BELOW_FLOAT in best.cells[index].marks:
        return None
    p_values, needed = [], None
    draws = min(row.pooled.draws for row in rows)
    rivals = [row for row in rows if row is not best]
    second = max(rivals, key=lambda row: sign * (_value(row, column) or 0.0))
    for rival in rivals:
        pair_ = _pair(best, rival, column)
        if pair_ is None:
            return None
        if not pair_.prompts or pair_.identical[0] < pair_.identical[1]:
            p_values.append(1.0)
            continue
        found, p_value = paired_interval(pair_.a_CN, pair_.b_CN)
        p_values.append(p_value if sign * found.value > 0 else 1.0)
        if rival is second and draws == 1:
            needed = images_needed(found)
    return Winner(
        cell=best.cells[index],
        p_values=tuple(p_values),
        draws=draws,
        title=column.title,
        needed=needed,
    )


def _difference(row: Row, other: Row, column: Column) -> Estimate | None:
    found = _pair(row, other, column)
    if found is None or not found.prompts:
        return None
    return paired_interval(found.a_CN, found.b_CN)[0]


def _pair(row: Row, other: Row, column: Column) -> Pair | None:
    """None too where the two share no calibration draw: a table shows both, and says no more."""
    try:
        return pair(row.pooled, other.pooled, column.per_image)
    except ValueError:
        return None
