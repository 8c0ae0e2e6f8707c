"""A table is a function of records: rows, marks, caption, legend; `render` writes it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.metrics.flat_images import FlatImages
from evaluation.metrics.metric_interface import Shown
from evaluation.metrics.step_error import ENTRIES_BEGIN, StepError
from evaluation.records import Metric, Record
from evaluation.report.columns import NO_VALUE, Cell, Column, default_columns
from evaluation.statistics import separable_from_floor

FLOAT_METHOD = "fp"
FLOOR_METHOD = "noise_floor"
MISSING = "missing"

MARK_FLOOR = "~"
MARK_BELOW_FLOAT = "↓fp"
MARK_OTHER_PROTOCOL = "‡"
MARK_DAMAGED = "!"
_MARK_LEGENDS = {
    MARK_FLOOR: "cannot be told from the noise floor (the unquantized model run twice): the "
    "intervals overlap, or it lies nearer to the reference than the floor does",
    MARK_BELOW_FLOAT: "distance to the dataset below the unquantized model's: a shift of the "
    "distribution, not an improvement; never bold",
    MARK_OTHER_PROTOCOL: "other dataset, number of images or protocol than the rest of its model's "
    "rows: not to be compared with them",
    MARK_DAMAGED: "some images are flat (one colour); they are scored like all others",
}
# what rows must share to be compared, where a record states it
SHARED_PROTOCOL_FIELDS = (
    "protocol_hash",
    "revision",
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "resolution",
    "height",
    "width",
    "dtype",
    "prompts_hash",
    "seed_rule",
    "image_format",
    "evaluator",
)
SWITCHES = ("latents", "image")  # settings of the sampling that replay a published protocol


@dataclass(kw_only=True)
class Row:
    record: Record
    kind: str  # "float", "floor", "method" or "missing"
    cells: list[Cell]


@dataclass(kw_only=True)
class Table:
    caption: str
    columns: list[Column]
    rows: list[Row]
    legend: list[str]
    notes: list[str]  # numbered from 1; cells refer to them


def make_table(
    records: Sequence[Record],
    *,
    columns: Sequence[Column] | None = None,
    descriptions: Sequence[Shown] | None = None,
    expected: Sequence[tuple[str, str, str]] = (),
    title: str = "",
) -> Table:
    """Arrange records.

    For each model: `fp`, `noise_floor`, then the methods side by side at each bit-width.

    Args:
        columns: None for `default_columns`, which `descriptions` of metrics are for.
        expected: (model, method, bits) that were asked for; those without a record get a row too.
        title: first words of the caption.
    """
    records = [*records, *_missing_records(records, expected=expected)]
    if not records:
        raise ValueError("no records: run the cells first, or say which are expected")
    if columns is None:
        columns = default_columns(records, descriptions=descriptions)
    chosen = list(columns)
    rows = [
        Row(record=record, kind=_kind(record), cells=[column.cell(record) for column in chosen])
        for record in sort_records(records)
    ]
    for row in rows:
        _blank_failed(row, columns=chosen)
    _mark(rows, columns=chosen)
    notes = _number_notes(rows)
    return Table(
        caption=_caption(records, title=title),
        columns=chosen,
        rows=rows,
        legend=_legend(rows, columns=chosen),
        notes=notes,
    )


def sort_records(records: Sequence[Record]) -> list[Record]:
    """By model; fp, the floor, then bits and within them methods, in order of first appearance."""
    models = list(dict.fromkeys(record.model for record in records))
    methods = list(dict.fromkeys(record.method_label for record in records))
    widths = list(dict.fromkeys(record.bits_label for record in records))
    leading = {FLOAT_METHOD: -2, FLOOR_METHOD: -1}
    return sorted(
        records,
        key=lambda record: (
            models.index(record.model),
            leading.get(record.method, 0),
            widths.index(record.bits_label),
            methods.index(record.method_label),
        ),
    )


def comparability(record: Record) -> dict[str, Any]:
    """What must be equal for two rows of one model to be compared."""
    shared = {
        name: record.protocol[name] for name in SHARED_PROTOCOL_FIELDS if name in record.protocol
    }
    return {"dataset": record.dataset, "n": sample_size(record), **shared}


def sample_size(record: Record) -> int | None:
    """The number of images behind most metrics; None where nothing was measured."""
    sizes = Counter(
        metric.n
        for name, metric in record.metrics.items()
        if metric.value is not None and not name.startswith(ENTRIES_BEGIN)
    )
    return sizes.most_common(1)[0][0] if sizes else None


def _kind(record: Record) -> str:
    if record.status == MISSING:
        return "missing"
    return {FLOAT_METHOD: "float", FLOOR_METHOD: "floor"}.get(record.method, "method")


def _missing_records(
    records: Sequence[Record], *, expected: Sequence[tuple[str, str, str]]
) -> list[Record]:
    present = {(record.model, record.method_label, record.bits_label) for record in records}
    return [
        Record(
            run_id="", status=MISSING, reason="no record on disk", model=model, method=method,
            bits=bits, dataset="", seed=0,
        )
        for model, method, bits in expected
        if (model, method, bits) not in present
    ]  # fmt: skip


def _blank_failed(row: Row, *, columns: Sequence[Column]) -> None:
    if row.record.status == "ok":
        return
    identity = {"model", "method", "bits", "granularity", "seed", "status"}
    for index, column in enumerate(columns):
        if column.key not in identity:
            row.cells[index] = Cell(text=NO_VALUE)


def _mark(rows: Sequence[Row], *, columns: Sequence[Column]) -> None:
    for model in dict.fromkeys(row.record.model for row in rows):
        group = [row for row in rows if row.record.model == model and row.record.status == "ok"]
        if not group:
            continue
        home = _digest(_home(group).record)
        same = [row for row in group if _digest(row.record) == home]
        for row in group:
            _note_switches(row, columns=columns)
            if _digest(row.record) != home:
                row.cells[_name_index(columns)].marks.append(MARK_OTHER_PROTOCOL)
                _add_note(row, _differences(row.record, other=_home(group).record), columns)
            damaged = row.record.metrics.get(FlatImages.name)
            if damaged is not None and damaged.value:
                row.cells[_name_index(columns)].marks.append(MARK_DAMAGED)
                _add_note(row, f"{damaged.value:.0f} of {damaged.n} images", columns)
        for index, column in enumerate(columns):
            if column.metric is not None:
                _mark_metric(same, index=index, column=column)


def _note_switches(row: Row, *, columns: Sequence[Column]) -> None:
    """What a row replays of a published protocol, or does otherwise on purpose."""
    done = row.record.method_elements.get("included", [])
    said = [text for text in done if text.startswith(("switch ", "experiment "))]
    said += [
        f"switch {key}={row.record.settings[key]}" for key in SWITCHES if key in row.record.settings
    ]
    if said:
        _add_note(row, "; ".join(said), columns)


def _add_note(row: Row, text: str, columns: Sequence[Column]) -> None:
    cell = row.cells[_name_index(columns)]
    cell.note = "; ".join(part for part in (cell.note, text) if part)


def _mark_metric(rows: Sequence[Row], *, index: int, column: Column) -> None:
    """Marks and bold for one metric among comparable rows of one model."""
    name = column.metric
    assert name is not None
    by_kind = {row.kind: row for row in reversed(rows)}
    floor = by_kind["floor"].record.metrics.get(name) if "floor" in by_kind else None
    unquantized = by_kind["float"].record.metrics.get(name) if "float" in by_kind else None
    methods = [row for row in rows if row.kind == "method" and row.record.metrics.get(name)]
    for row in methods:
        metric = row.record.metrics[name]
        if floor is not None and separable_from_floor(metric, floor=floor) is False:
            row.cells[index].marks.append(MARK_FLOOR)
        if column.shift_below_unquantized and _is_better(metric, than=unquantized):
            row.cells[index].marks.append(MARK_BELOW_FLOAT)
    for bits in dict.fromkeys(row.record.bits_label for row in methods):
        same = [row for row in methods if row.record.bits_label == bits]
        _embolden(same, index=index, name=name)


def _is_better(metric: Metric, *, than: Metric | None) -> bool:
    if than is None or metric.value is None or than.value is None:
        return False
    return metric.value > than.value if metric.higher_is_better else metric.value < than.value


def _embolden(rows: Sequence[Row], *, index: int, name: str) -> None:
    """The best of one bit-width, if its interval is clear of every other row's."""
    candidates = [row for row in rows if row.record.metrics[name].value is not None]
    better = candidates[0].record.metrics[name].higher_is_better if candidates else None
    if len(candidates) < 2 or better is None:
        return
    sign = 1 if better else -1

    def bounds(row: Row) -> tuple[float, float, float]:
        metric = row.record.metrics[name]
        assert metric.value is not None
        low, high = metric.interval or [metric.value, metric.value]
        worst, best = sorted((sign * low, sign * high))
        return sign * metric.value, worst, best

    winner = max(candidates, key=lambda row: bounds(row)[0])
    rivals = [row for row in candidates if row is not winner]
    clear = all(bounds(winner)[1] > bounds(row)[2] for row in rivals)
    if clear and MARK_BELOW_FLOAT not in winner.cells[index].marks:
        winner.cells[index].bold = True


def _home(group: Sequence[Row]) -> Row:
    """The row that the others are held against: fp, or else one of the largest comparable set."""
    for row in group:
        if row.kind == "float":
            return row
    most = Counter(_digest(row.record) for row in group).most_common(1)[0][0]
    return next(row for row in group if _digest(row.record) == most)


def _digest(record: Record) -> str:
    text = json.dumps(comparability(record), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(record: Record, *, other: Record) -> str:
    mine, theirs = comparability(record), comparability(other)
    parts = [
        f"{name}={mine.get(name)!r} instead of {theirs.get(name)!r}"
        for name in dict.fromkeys((*theirs, *mine))
        if mine.get(name) != theirs.get(name)
    ]
    return ", ".join(parts)


def _name_index(columns: Sequence[Column]) -> int:
    keys = [column.key for column in columns]
    return keys.index("method") if "method" in keys else 0


def _number_notes(rows: Sequence[Row]) -> list[str]:
    """Each distinct note gets a number, which joins the marks of its cells."""
    notes: list[str] = []
    for row in rows:
        for cell in row.cells:
            if cell.note:
                if cell.note not in notes:
                    notes.append(cell.note)
                cell.marks.append(f"({notes.index(cell.note) + 1})")
    return notes


def _caption(records: Sequence[Record], *, title: str) -> str:
    measured = [record for record in records if sample_size(record) is not None]
    sizes = sorted({sample_size(record) or 0 for record in measured})
    datasets = list(dict.fromkeys(record.dataset for record in measured))
    parts = [title] if title else []
    if datasets:
        parts.append(f"dataset {', '.join(datasets)}")
        parts.append(f"n = {', '.join(map(str, sizes))} images a row")
    steps = sorted(
        {
            metric.n
            for record in records
            for name, metric in record.metrics.items()
            if name == StepError.name and metric.value is not None
        }
    )
    if steps and steps != sizes:
        parts.append(f"step error on n = {', '.join(map(str, steps))} prompts")
    return "; ".join(parts) + "."


def _legend(rows: Sequence[Row], *, columns: Sequence[Column]) -> list[str]:
    used = {mark for row in rows for cell in row.cells for mark in cell.marks}
    lines = [f"{column.title}: {column.legend}." for column in columns]
    lines += [f"{mark} {text}." for mark, text in _MARK_LEGENDS.items() if mark in used]
    if any(cell.bold for row in rows for cell in row.cells):
        lines.append(
            "Bold: best quantized row of its bits, its interval clear of all others' of these bits."
        )
    lines.append("n/a: does not apply or could not be measured; -: not in the record.")
    return lines
