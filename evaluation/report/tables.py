"""A table is a function of records: rows, marks, caption, legend; `render` writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.metrics.flat_images import FlatImages
from evaluation.metrics.metric_interface import Shown
from evaluation.metrics.step_error import StepError
from evaluation.power import POWER
from evaluation.records import Record
from evaluation.report.columns import NO_VALUE, Cell, Column, default_columns
from evaluation.report.marks import (
    MARK_BELOW_FLOAT,
    MARK_FLOOR,
    Row,
    Winner,
    embolden,
    mark_metrics,
)
from evaluation.report.rows import (
    FEWEST_DRAWS,
    FLOAT_METHOD,
    FLOOR_METHOD,
    Scored,
    comparability,
    pool,
    sample_size,
    setting,
)

MISSING = "missing"

MARK_OTHER_PROTOCOL = "‡"
MARK_DAMAGED = "!"
_MARK_LEGENDS = {
    MARK_FLOOR: "cannot be told from the noise floor (the unquantized model run twice): to the "
    "reference, not farther than the floor by the 95 % interval of the paired difference; else "
    "that of the difference from fp lies within the floor's",
    MARK_BELOW_FLOAT: "distance to the dataset below the unquantized model's, by the 95 % interval "
    "of the paired difference: a shift of the distribution, not an improvement; never bold",
    MARK_OTHER_PROTOCOL: "other dataset, seed, number of images or protocol than the first rows of "
    "its model: not to be compared with them",
    MARK_DAMAGED: "some images are flat (one colour); they are scored like all others",
}
SWITCHES = ("latents", "image")  # settings of the sampling that replay a published protocol


@dataclass(kw_only=True)
class Table:
    caption: str
    columns: list[Column]
    rows: list[Row]
    legend: list[str]
    notes: list[str]  # numbered from 1; cells refer to them


def make_table(
    cells: Sequence[Scored],
    *,
    columns: Sequence[Column] | None = None,
    descriptions: Sequence[Shown] | None = None,
    missing: Sequence[tuple[str, str, str]] = (),
    title: str = "",
    costs: bool = False,
) -> Table:
    """Arrange records.

    For each model: `fp`, `noise_floor`, then the methods side by side at each bit-width. Cells that
    differ in their calibration draw alone are one row. Without scores image by image there are no
    marks and nothing is bold.

    Args:
        columns: None for `default_columns`, which `descriptions` of metrics are for.
        missing: (model, method, bits) that were asked for and have no record; each gets a row.
        title: first words of the caption.
        costs: what quantizing took stands in columns of its own.
    """
    cells = [*cells, *(Scored(record=_no_record(*names)) for names in dict.fromkeys(missing))]
    if not cells:
        raise ValueError("no records: run the cells first, or say which are missing")
    records = [cell.record for cell in cells]
    if columns is None:
        columns = default_columns(records, descriptions=descriptions, costs=costs)
    chosen = list(columns)
    per_image = {column.metric: column.per_image for column in chosen if column.metric}
    pooled = {id(row.record): row for row in pool(cells, columns=per_image)}
    rows = [
        Row(
            pooled=pooled[id(record)],
            kind=_kind(record),
            cells=[column.cell(record) for column in chosen],
        )
        for record in sort_records([row.record for row in pooled.values()])
    ]
    for row in rows:
        _blank_failed(row, columns=chosen)
    winners = _mark(rows, columns=chosen)
    embolden(winners)
    notes = _number_notes(rows)
    return Table(
        caption=_caption(rows, title=title),
        columns=chosen,
        rows=rows,
        legend=_legend(rows, columns=chosen, winners=winners),
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


def _kind(record: Record) -> str:
    if record.status == MISSING:
        return "missing"
    return {FLOAT_METHOD: "float", FLOOR_METHOD: "floor"}.get(record.method, "method")


def _no_record(model: str, method: str, bits: str) -> Record:
    return Record(
        run_id="", status=MISSING, reason="no record on disk", model=model, method=method,
        bits=bits, dataset="", seed=0,
    )  # fmt: skip


def _blank_failed(row: Row, *, columns: Sequence[Column]) -> None:
    if row.pooled.record.status == "ok":
        return
    identity = {"model", "method", "bits", "granularity", "seed", "calibration", "status"}
    for index, column in enumerate(columns):
        if column.key not in identity:
            row.cells[index] = Cell(text=NO_VALUE)


def _mark(rows: Sequence[Row], *, columns: Sequence[Column]) -> list[Winner]:
    """Rows are held against those of their own setting alone."""
    settings: dict[str, list[Row]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        record = row.pooled.record
        if record.status != "ok":
            continue
        settings.setdefault(setting(record), []).append(row)
        _note_switches(row, columns=columns)
        damaged = record.metrics.get(FlatImages.name)
        if damaged is not None and damaged.value:
            row.cells[_name_index(columns)].marks.append(MARK_DAMAGED)
            _add_note(row, f"{damaged.value:.0f} of {damaged.n} images", columns)
    for model in dict.fromkeys(row.pooled.record.model for row in rows):
        group = [row for row in rows if row.pooled.record.model == model]
        group = [row for row in group if row.pooled.record.status == "ok"]
        if group:
            first[model] = _home(group)
    for name, group in settings.items():
        home = first[group[0].pooled.record.model].pooled.record
        for row in group if setting(home) != name else ():
            row.cells[_name_index(columns)].marks.append(MARK_OTHER_PROTOCOL)
            _add_note(row, _differences(row.pooled.record, other=home), columns)
    return [
        winner for group in settings.values() for winner in mark_metrics(group, columns=columns)
    ]


def _note_switches(row: Row, *, columns: Sequence[Column]) -> None:
    """What a row replays of a published protocol, or does otherwise on purpose."""
    record = row.pooled.record
    done = record.method_elements.get("included", [])
    said = [text for text in done if text.startswith(("switch ", "experiment "))]
    said += [f"switch {key}={record.settings[key]}" for key in SWITCHES if key in record.settings]
    if said:
        _add_note(row, "; ".join(said), columns)


def _add_note(row: Row, text: str, columns: Sequence[Column]) -> None:
    cell = row.cells[_name_index(columns)]
    cell.note = "; ".join(part for part in (cell.note, text) if part)


def _home(group: Sequence[Row]) -> Row:
    """The row whose setting is the model's: fp, or else one of the largest comparable set."""
    for row in group:
        if row.kind == "float":
            return row
    most = Counter(setting(row.pooled.record) for row in group).most_common(1)[0][0]
    return next(row for row in group if setting(row.pooled.record) == most)


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


def _caption(rows: Sequence[Row], *, title: str) -> str:
    records = [row.pooled.record for row in rows]
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
    draws = sorted({row.pooled.draws for row in rows if _is_quantized(row)})
    if draws:
        plural = "" if draws == [1] else "s"
        parts.append(f"{', '.join(map(str, draws))} calibration draw{plural}")
    return "; ".join(parts) + "."


def _is_quantized(row: Row) -> bool:
    return row.kind == "method" and row.pooled.record.status == "ok"


def _legend(
    rows: Sequence[Row], *, columns: Sequence[Column], winners: Sequence[Winner]
) -> list[str]:
    used = {mark for row in rows for cell in row.cells for mark in cell.marks}
    lines = [f"{column.title}: {column.legend}." for column in columns]
    lines += [f"{mark} {text}." for mark, text in _MARK_LEGENDS.items() if mark in used]
    if any(cell.bold for row in rows for cell in row.cells):
        lines.append(
            "Bold: best quantized row of its bits, better than every other of them: paired tests "
            "with calibration draws and prompts crossed, p at most 0.05 after Holm over the table."
        )
    elif winners and max(winner.draws for winner in winners) < FEWEST_DRAWS:
        lines.append(
            f"Nothing is bold: a winner has to win for {FEWEST_DRAWS} calibration draws or more "
            "(dataset.calibration_seed=0,1,2); intervals here are over prompts alone."
        )
    lines += _power(winners)
    lines.append("n/a: does not apply or could not be measured; -: not in the record.")
    return lines


def _power(winners: Sequence[Winner]) -> list[str]:
    """How many images tell the best row of its bits from the next, by column."""
    by_title: dict[str, list[int]] = {}
    for winner in winners:
        if winner.needed is not None:
            by_title.setdefault(winner.title, []).append(winner.needed)
    if not by_title:
        return []
    said = [f"{title} {_range(counts)}" for title, counts in by_title.items()]
    return [
        "Images (of the step error: prompts) that tell the best row of its bits from the next with "
        f"{100 * POWER:.0f} % power at p = 0.05, on these calibration draws: {'; '.join(said)}."
    ]


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
