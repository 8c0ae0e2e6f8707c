"""Methods held against one of them, prompt by prompt: what is better, what is worse, by how much.

A row of `compare_rows` is one method at one setting beside the baseline's row of the same: model,
bits, seed, sampling, prompts, number of calibration prompts. Several calibration draws are crossed
with the prompts: a verdict then holds for another draw. The verdict is by the teacher-forced step
error, the metric that the fewest prompts decide; p-values are adjusted by Holm's method over the
whole table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from statistics import median

from evaluation.metrics.metric_catalogue import all_metrics, shown
from evaluation.metrics.metric_interface import DELTA, Shown
from evaluation.metrics.step_error import StepError
from evaluation.power import POWER, images_needed, ratio_needed
from evaluation.records import Record
from evaluation.report.columns import (
    NO_VALUE,
    Cell,
    Column,
    calibration,
    expand,
    metric_cell,
    number_column,
    text_column,
)
from evaluation.report.marks import Row
from evaluation.report.rows import (
    FEWEST_DRAWS,
    UNQUANTIZED,
    Pair,
    Pooled,
    Scored,
    pair,
    pool,
    setting,
)
from evaluation.report.tables import Table
from evaluation.statistics import (
    Difference,
    holm,
    metric_from_estimate,
    paired_difference,
    paired_ratio,
)

STEP_ERROR = StepError.columns[0]  # decides the verdict
STATED_RATIO = 1.1  # of step errors, for which the power is said


class Verdict(Enum):
    """By the step error at a family-wise error of 5 %."""

    better = "better"
    worse = "worse"
    unclear = "not told apart"
    equal = "equal"  # to the last bit


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
    """One row beside the baseline's.

    `identical` counts, for the row and the baseline, prompts that a difference leaves out since an
    image is the reference's own.
    """

    record: Record
    ratio: Difference | None  # of step errors; None where one of them is 0 or not there
    draws: int = 1  # calibration draws that both have
    verdict: Verdict | None = None
    adjusted: float | None = None
    differences: dict[str, Difference] = field(default_factory=dict)
    identical: dict[str, tuple[int, int]] = field(default_factory=dict)
    layer_ratio: float | None = None  # of the layers' own errors on calibration rows

    @property
    def said(self) -> str:
        """The verdict, and what it is of where it is of less than `FEWEST_DRAWS` draws."""
        if self.verdict is None:
            return ""
        if self.verdict not in (Verdict.better, Verdict.worse) or self.draws >= FEWEST_DRAWS:
            return self.verdict.value
        return f"{self.verdict.value} ({self.draws} calibration draw{'s' * (self.draws > 1)})"


def compare_rows(
    cells: Sequence[Scored],
    *,
    against: str,
    seed: int = 0,
    descriptions: Sequence[Shown] | None = None,
) -> list[Compared]:
    """Every quantized row that has the baseline's row at its setting, in the order given.

    Args:
        descriptions: of the metrics that are compared; None for every one that is known here.

    Raises:
        ValueError: no row is the baseline's, or rows of one setting cannot be paired.
    """
    rows = pool(cells, columns={})
    home = {_family(row.record): row for row in rows if row.record.method_label == against}
    if not home:
        known = dict.fromkeys(row.record.method_label for row in rows)
        raise ValueError(f"no row of {against}; there are {', '.join(known) or 'none'}")
    present = {name for cell in cells for name in cell.scores}
    names = [item.per_image for item in _compared(present, descriptions)]
    compared = [
        _beside(row, home[_family(row.record)], names=names, seed=seed)
        for row in rows
        if _family(row.record) in home
        and row.record.method_label != against
        and row.record.method not in UNQUANTIZED
    ]
    _judge(compared)
    return compared


def without_baseline(cells: Sequence[Scored], *, against: str) -> list[Record]:
    """Quantized rows that `compare_rows` leaves out, as the baseline has none of their setting."""
    rows = [row.record for row in pool(cells, columns={})]
    home = {_family(record) for record in rows if record.method_label == against}
    return [
        record for record in rows
        if record.method not in UNQUANTIZED and _family(record) not in home
    ]  # fmt: skip


def _compared(present: set[str], descriptions: Sequence[Shown] | None) -> list[Shown]:
    """The words of every metric that is compared, of the per-image columns that are there."""
    words = shown(all_metrics()) if descriptions is None else descriptions
    return [
        item
        for template in words
        for item in expand(template, names=present)
        if item.per_image in present
        and item.per_image != STEP_ERROR  # the verdict's own
        and not item.metric.endswith(DELTA)
    ]


def _family(record: Record) -> str:
    """All that the two rows of a comparison have in common."""
    parts = [setting(record), record.bits_label, record.protocol.get("calibration_prompts")]
    others = {k: v for k, v in record.settings.items() if not k.startswith(("method.", "bits."))}
    return json.dumps([*parts, others], sort_keys=True, default=str)


def _beside(row: Pooled, base: Pooled, *, names: Sequence[str], seed: int) -> Compared:
    compared = Compared(
        record=row.record,
        ratio=None,
        layer_ratio=layer_ratio(row.record, base.record),
    )
    for name in names:
        found = pair(row, base, name)
        if found is None:
            continue
        if any(found.identical):
            compared.identical[name] = found.identical
        if difference := _subtracted(found, seed=seed):
            compared.differences[name] = difference
    errors = pair(row, base, STEP_ERROR)
    if errors is None:
        return compared
    compared.draws = len(errors.a_CN)
    if (errors.a_CN == errors.b_CN).all():
        compared.verdict = Verdict.equal
    elif errors.prompts > 1 and min(errors.a_CN.min(), errors.b_CN.min()) > 0:
        compared.ratio = paired_ratio(errors.a_CN, errors.b_CN)
    return compared


def _subtracted(found: Pair, *, seed: int) -> Difference | None:
    return paired_difference(found.a_CN, found.b_CN, seed=seed) if found.prompts else None


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


def _judge(rows: Sequence[Compared]) -> None:
    p_values = {str(i): c.ratio.p_value for i, c in enumerate(rows) if c.ratio is not None}
    for index, result in holm(p_values).items():
        row = rows[int(index)]
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
    descriptions: Sequence[Shown] | None = None,
    alone: Sequence[Record] = (),
) -> Table:
    """The table of `compare_rows`; a worse row's reason is a note under it.

    Args:
        alone: rows that no baseline stands beside; the last lines say which.
    """
    by_id = {id(row.record): row for row in rows}
    columns = _columns(by_id, against=against, descriptions=descriptions)
    lines = [
        Row(
            pooled=Pooled(record=row.record, cells=()),
            kind="method",
            cells=[column.cell(row.record) for column in columns],
        )
        for row in rows
    ]
    notes: list[str] = []
    for line in lines:
        row = by_id[id(line.pooled.record)]
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
    caption += f"rows against {against} of the same setting: {said or 'none'}"
    if sizes:
        caption += f"; step error on n = {', '.join(map(str, sizes))} prompts"
    draws = sorted({row.draws for row in rows if row.verdict is not None})
    if draws:
        caption += f"; {', '.join(map(str, draws))} calibration draw{'s' * (draws != [1])}"
    legend = [f"{column.title}: {column.legend}." for column in columns]
    if draws and draws[0] < FEWEST_DRAWS:
        legend.append(
            f"(1 calibration draw): another draw may say otherwise; {FEWEST_DRAWS} or more "
            "(dataset.calibration_seed=0,1,2) are crossed with the prompts."
        )
    present = {name for row in rows for name in row.differences}
    legend += _power(rows, _compared(present, descriptions))
    names = dict.fromkeys(f"{r.model} {r.method_label} {r.bits_label}" for r in alone)
    if names:
        legend.append(f"Left out, as {against} has no row of their setting: {', '.join(names)}.")
    return Table(
        caption=f"{caption}.",
        columns=columns,
        rows=lines,
        legend=[*legend, f"{NO_VALUE}: not measured for both rows."],
        notes=notes,
    )


def _columns(
    rows: Mapping[int, Compared], *, against: str, descriptions: Sequence[Shown] | None
) -> list[Column]:
    def ratio(record: Record) -> Cell:
        return _difference_cell(rows[id(record)].ratio)

    def adjusted(record: Record) -> Cell:
        p = rows[id(record)].adjusted
        return Cell(text=NO_VALUE if p is None else f"{p:.2g}", value=p)

    def verdict(record: Record) -> str:
        return rows[id(record)].said

    return [
        text_column("model", title="Model", legend="model, by its key", text=lambda r: r.model),
        text_column("bits", title="Bits", legend="bit-width setting", text=lambda r: r.bits_label),
        text_column(
            "method", title="Method", legend="method, by its key", text=lambda r: r.method_label
        ),
        *_varying(rows),
        Column(
            key="step_error_ratio",
            title="Step error ratio",
            legend=f"the row's step error over {against}'s, geometric mean over prompts (and "
            "calibration draws); lower is better; [Student's 95 % interval on the logarithms]",
            cell=ratio,
        ),
        number_column(
            "layer_error_ratio",
            title="Layer error ratio",
            legend=f"the layers' own errors over {against}'s on calibration rows, which the method "
            "saw; geometric mean over layers; lower is better",
            number=lambda record: rows[id(record)].layer_ratio,
        ),
        *_difference_columns(rows, against=against, descriptions=descriptions),
        Column(
            key="p_adjusted",
            title="p",
            legend="two-sided, of the step error's ratio, adjusted by Holm over the table",
            cell=adjusted,
        ),
        number_column(
            "n_to_tell",
            title="n to tell",
            legend="prompts that would tell such a ratio of step errors from 1 with "
            f"{100 * POWER:.0f} % power at p = 0.05, of one comparison on this calibration draw",
            number=lambda record: _prompts_needed(rows[id(record)]),
            digits=0,
        ),
        text_column(
            "verdict",
            title="Verdict",
            legend="by the step error, at p = 0.05",
            text=verdict,
        ),
    ]


def _prompts_needed(row: Compared, *, ratio: float | None = None) -> int | None:
    """For the ratio that was seen, or another; None where several draws have a part in it."""
    return None if row.ratio is None or row.draws > 1 else ratio_needed(row.ratio, ratio=ratio)


def _power(rows: Sequence[Compared], words: Sequence[Shown]) -> list[str]:
    """What numbers of prompts would tell: a stated ratio of step errors, the differences seen."""
    stated = [n for row in rows if (n := _prompts_needed(row, ratio=STATED_RATIO)) is not None]
    said = []
    if stated:
        said.append(
            f"a step error {100 * (STATED_RATIO - 1):.0f} % above is told at n = "
            f"{round(median(stated)):,}"
        )
    for item in words:
        seen = [row.differences.get(item.per_image) for row in rows if row.draws == 1]
        counts = [n for one in seen if one is not None and (n := images_needed(one)) is not None]
        if counts:
            said.append(f"{item.title}, as far as it was seen apart, at {round(median(counts)):,}")
    if not said:
        return []
    return [
        f"Power: with {100 * POWER:.0f} % at p = 0.05, on this calibration draw, the median row: "
        f"{'; '.join(said)}."
    ]


def _varying(rows: Mapping[int, Compared]) -> list[Column]:
    """What tells rows apart beside model, bits and method, where they differ in it."""
    columns = [
        text_column("seed", title="Seed", legend="the cell's seed", text=lambda r: str(r.seed)),
        text_column(
            "steps",
            title="Steps",
            legend="sampling steps",
            text=lambda r: str(r.protocol.get("num_inference_steps", "")),
        ),
        text_column(
            "calibration",
            title="Calibration",
            legend="calibration prompts, and draws of them",
            text=calibration,
        ),
    ]
    records = [row.record for row in rows.values()]
    return [c for c in columns if len({c.cell(record).text for record in records}) > 1]


def _difference_columns(
    rows: Mapping[int, Compared], *, against: str, descriptions: Sequence[Shown] | None
) -> list[Column]:
    present = {name for row in rows.values() for name in (*row.differences, *row.identical)}
    items = _compared(present, descriptions)
    return [_difference_column(item, rows, against=against) for item in items]


def _difference_column(item: Shown, rows: Mapping[int, Compared], *, against: str) -> Column:
    known = [row.record.metrics.get(item.metric) for row in rows.values()]
    higher = next((metric.higher_is_better for metric in known if metric is not None), None)
    better = {True: " higher is better;", False: " lower is better;", None: ""}[higher]

    def cell(record: Record) -> Cell:
        row = rows[id(record)]
        shown_ = _difference_cell(row.differences.get(item.per_image), scale=item.scale)
        if item.per_image in row.identical:
            mine, theirs = row.identical[item.per_image]
            shown_.text += f" (= {mine}, {theirs})"
        return shown_

    legend = f"the row's minus {against}'s, mean over prompts;{better} [95 % paired interval]"
    if any(item.per_image in row.identical for row in rows.values()):
        legend += (
            "; (= a, b): prompts left out, as the row's image or "
            f"{against}'s is the reference's own"
        )
    return Column(
        key=f"{item.per_image}_difference",
        title=f"{item.title} difference",
        legend=legend,
        cell=cell,
    )


def _difference_cell(difference: Difference | None, *, scale: float = 1.0) -> Cell:
    if difference is None:
        return Cell(text=NO_VALUE)
    metric = metric_from_estimate(
        difference, higher_is_better=None, against="a baseline", note="", unit=""
    )
    return metric_cell(metric, scale=scale)
