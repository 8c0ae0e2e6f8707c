"""Methods held against one of them, prompt by prompt: what is better, what is worse, by how much.

A row of `compare_rows` is one method at one model and bits beside the baseline's row of the same.
The verdict is by the teacher-forced step error, the metric that the fewest prompts decide; p-values
are adjusted by Holm's method within a model and its bits, a family that one reads as one question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase

from evaluation.metrics.metric_catalogue import all_metrics, shown
from evaluation.metrics.metric_interface import MetricBase
from evaluation.metrics.step_error import StepError
from evaluation.records import Record
from evaluation.report.columns import (
    NO_VALUE,
    Cell,
    Column,
    metric_cell,
    number_column,
    text_column,
)
from evaluation.report.tables import FLOAT_METHOD, FLOOR_METHOD, Row, Table
from evaluation.statistics import (
    Difference,
    holm,
    metric_from_estimate,
    paired_difference,
    paired_ratio,
)

STEP_ERROR = StepError.columns[0]  # decides the verdict
_UNQUANTIZED = (FLOAT_METHOD, FLOOR_METHOD)


class Verdict(Enum):
    """By the step error at a family-wise error of 5 %."""

    better = "better"
    worse = "worse"
    unclear = "not told apart"
    equal = "equal"  # to the last bit


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A cell's record with its metrics prompt by prompt: metric -> prompt id -> value."""

    record: Record
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why some rows are worse; `models`, `methods` and `bits` are shell patterns of names."""

    reason: str
    methods: Sequence[str]
    models: Sequence[str] = ("*",)
    bits: Sequence[str] = ("*",)

    def covers(self, record: Record) -> bool:
        pairs = (
            (record.model, self.models),
            (record.method_label, self.methods),
            (record.bits_label, self.bits),
        )
        return all(any(fnmatchcase(name, p) for p in patterns) for name, patterns in pairs)


@dataclass(kw_only=True)
class Compared:
    """One row beside the baseline's."""

    record: Record
    ratio: Difference | None  # of step errors; None where one of them is 0 or not there
    verdict: Verdict | None = None
    adjusted: float | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    layer_ratio: float | None = None  # of the layers' own errors on calibration rows


def compare_rows(
    rows: Sequence[Scored],
    *,
    against: str,
    seed: int = 0,
    metrics: Sequence[MetricBase] | None = None,
) -> list[Compared]:
    """Every quantized row that has the baseline's row at its model and bits, in the order given.

    Args:
        metrics: whose first columns are compared; None for every metric that is known here.

    Raises:
        ValueError: no row is the baseline's.
    """
    home = {_family(row): row for row in rows if row.record.method_label == against}
    if not home:
        known = dict.fromkeys(row.record.method_label for row in rows)
        raise ValueError(f"no row of {against}; there are {', '.join(known) or 'none'}")
    names = [metric.columns[0] for metric in _differing(metrics)]
    by_number: dict[int, Compared] = {}
    for family, base in home.items():
        members = [
            (number, row)
            for number, row in enumerate(rows)
            if _family(row) == family
            and row.record.method_label != against
            and row.record.method not in _UNQUANTIZED
        ]
        compared = {n: _beside(row, base, names=names, seed=seed) for n, row in members}
        _judge(list(compared.values()))
        by_number |= compared
    return [by_number[number] for number in sorted(by_number)]


def _differing(metrics: Sequence[MetricBase] | None) -> list[MetricBase]:
    """The metrics whose difference is shown: one number a prompt, and not the verdict's."""
    known = all_metrics() if metrics is None else metrics
    return [metric for metric in known if metric.columns and metric.columns[0] != STEP_ERROR]


def _family(row: Scored) -> tuple[str, str]:
    return row.record.model, row.record.bits_label


def _beside(row: Scored, base: Scored, *, names: Sequence[str], seed: int) -> Compared:
    differences = {}
    for name in names:
        if pair := _paired(row, base, name):
            differences[name] = paired_difference(*pair, seed=seed)
    errors = _paired(row, base, STEP_ERROR)
    compared = Compared(
        record=row.record,
        ratio=None,
        differences=differences,
        layer_ratio=layer_ratio(row.record, base.record),
    )
    if errors is None:
        return compared
    if errors[0] == errors[1]:
        compared.verdict = Verdict.equal
    elif min(map(min, errors)) > 0:
        compared.ratio = paired_ratio(*errors)
    return compared


def layer_ratio(record: Record, base: Record) -> float | None:
    """Geometric mean, over the layers of both, of the layer's own error over the baseline's.

    The errors are those that the method itself saw, on calibration rows: a row whose layers are
    better there and whose step error is worse has learned its calibration, or its layers' errors
    add up differently.
    """
    mine, theirs = (
        {
            layer["name"]: layer["relative_error"]
            for layer in r.layers_quantized
            if "relative_error" in layer
        }
        for r in (record, base)
    )
    logs = [
        math.log(mine[name] / theirs[name])
        for name in mine
        if theirs.get(name, 0) > 0 and mine[name] > 0
    ]
    return math.exp(sum(logs) / len(logs)) if logs else None


def _paired(row: Scored, base: Scored, name: str) -> tuple[list[float], list[float]] | None:
    """Values of the prompts, which must be the same ones."""
    mine, theirs = row.scores.get(name), base.scores.get(name)
    if not mine or not theirs:
        return None
    if set(mine) != set(theirs):
        differing = sorted(set(mine) ^ set(theirs))
        raise ValueError(
            f"{row.record.model} {row.record.method_label} and {base.record.method_label} were "
            f"measured on different prompts ({len(differing)} in one only, such as "
            f"{differing[0]}); compare rows of one request"
        )
    return [mine[key] for key in theirs], list(theirs.values())


def _judge(family: Sequence[Compared]) -> None:
    p_values = {str(i): c.ratio.p_value for i, c in enumerate(family) if c.ratio is not None}
    for index, result in holm(p_values).items():
        row = family[int(index)]
        assert row.ratio is not None
        row.adjusted = result.adjusted
        if not result.rejected:
            row.verdict = Verdict.unclear
        else:
            row.verdict = Verdict.better if row.ratio.value < 1 else Verdict.worse


def unexplained(rows: Sequence[Compared], *, reasons: Sequence[Reason]) -> list[Compared]:
    """Rows that are worse and have no reason."""
    worse = [row for row in rows if row.verdict is Verdict.worse]
    return [row for row in worse if not any(r.covers(row.record) for r in reasons)]


def comparison_table(
    rows: Sequence[Compared],
    *,
    against: str,
    reasons: Sequence[Reason] = (),
    title: str = "",
    metrics: Sequence[MetricBase] | None = None,
) -> Table:
    """The table of `compare_rows`; a worse row's reason is a note under it."""
    by_id = {id(row.record): row for row in rows}
    columns = _columns(by_id, against=against, metrics=_differing(metrics))
    lines = [
        Row(record=row.record, kind="method", cells=[column.cell(row.record) for column in columns])
        for row in rows
    ]
    notes: list[str] = []
    for line in lines:
        row = by_id[id(line.record)]
        if row.verdict is not Verdict.worse:
            continue
        line.cells[-1].bold = True
        for reason in (r.reason for r in reasons if r.covers(row.record)):
            if reason not in notes:
                notes.append(reason)
            line.cells[-1].marks.append(f"({notes.index(reason) + 1})")
    counts = {v: sum(row.verdict is v for row in rows) for v in Verdict}
    said = ", ".join(f"{count} {v.value}" for v, count in counts.items() if count)
    sizes = sorted({row.ratio.n for row in rows if row.ratio is not None})
    caption = f"{title}: " if title else ""
    caption += f"rows against {against} of the same model and bits: {said or 'none'}"
    if sizes:
        caption += f"; step error on n = {', '.join(map(str, sizes))} prompts"
    legend = [f"{column.title}: {column.legend}." for column in columns]
    return Table(
        caption=f"{caption}.",
        columns=columns,
        rows=lines,
        legend=[*legend, f"{NO_VALUE}: not measured for both rows."],
        notes=notes,
    )


def _columns(
    rows: Mapping[int, Compared], *, against: str, metrics: Sequence[MetricBase]
) -> list[Column]:
    def ratio(record: Record) -> Cell:
        return _difference_cell(rows[id(record)].ratio)

    def adjusted(record: Record) -> Cell:
        p = rows[id(record)].adjusted
        return Cell(text=NO_VALUE if p is None else f"{p:.2g}", value=p)

    def verdict(record: Record) -> str:
        judged = rows[id(record)].verdict
        return "" if judged is None else judged.value

    return [
        text_column("model", title="Model", legend="model, by its key", text=lambda r: r.model),
        text_column("bits", title="Bits", legend="bit-width setting", text=lambda r: r.bits_label),
        text_column(
            "method", title="Method", legend="method, by its key", text=lambda r: r.method_label
        ),
        Column(
            key="step_error_ratio",
            title="Step error ratio",
            legend=f"the row's step error over {against}'s, geometric mean over prompts; lower is "
            "better; [Student's 95 % interval on the logarithms]",
            cell=ratio,
        ),
        number_column(
            "layer_error_ratio",
            title="Layer error ratio",
            legend=f"the layers' own errors over {against}'s on calibration rows, which the method "
            "saw; geometric mean over layers; lower is better",
            number=lambda record: rows[id(record)].layer_ratio,
        ),
        *(
            _difference_column(metric, rows, against=against)
            for metric in metrics
            if any(metric.columns[0] in row.differences for row in rows.values())
        ),
        Column(
            key="p_adjusted",
            title="p",
            legend="two-sided, of the step error's ratio, adjusted by Holm within a model and bits",
            cell=adjusted,
        ),
        text_column(
            "verdict",
            title="Verdict",
            legend="by the step error, at p = 0.05",
            text=verdict,
        ),
    ]


def _difference_column(metric: MetricBase, rows: Mapping[int, Compared], *, against: str) -> Column:
    name = metric.columns[0]
    titles = {item.metric: item.title for item in shown([metric])}
    better = {True: " higher is better;", False: " lower is better;", None: ""}
    return Column(
        key=f"{name}_difference",
        title=f"{titles.get(metric.name, metric.name)} difference",
        legend=f"the row's minus {against}'s, mean over prompts;{better[metric.higher_is_better]} "
        "[95 % paired bootstrap interval]",
        cell=lambda record: _difference_cell(rows[id(record)].differences.get(name)),
    )


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(text=NO_VALUE)
    metric = metric_from_estimate(
        difference, higher_is_better=None, against="a baseline", note="", unit=""
    )
    return metric_cell(metric)
