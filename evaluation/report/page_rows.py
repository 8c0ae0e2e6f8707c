"""A table's rows as the page's script reads them: numbers to sort and draw, records to unfold."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from evaluation.records import Record, encode_record
from evaluation.report.chart_specs import Axis, Names
from evaluation.report.columns import Cell, Column, quantizing_columns
from evaluation.report.marks import Row
from evaluation.report.page_data import PageData, RowExtras, plain_values
from evaluation.report.tables import Table

SIMULATED = ("simulated", "library_simulated")
_DIGITS = 6  # of numbers that are drawn or sorted; the record beside them has all
_PACKED_ROWS = 16  # records in one compressed part, read when one of its rows is unfolded
_PRESSED = 6  # of gzip's nine: more takes longer and saves nothing here
_BYTES, _SECONDS = "weight_bytes", "seconds_per_image"
_SPEEDS = ("images", "reference", "seconds_per_image")  # in a record's seconds
_LOG_FROM = 20.0  # largest over smallest: such an axis is logarithmic, and has no place for 0
_QUALITY_FIRST = ("step_error", "psnr", "lpips", "ssim")  # the axis that a page opens with


def names_of(table: Table) -> Names:
    records = [row.pooled.record for row in table.rows]
    return Names(
        methods=list(dict.fromkeys(record.method_label for record in records)),
        bits=list(dict.fromkeys(record.bits_label for record in records)),
    )


def drawn_columns(table: Table) -> list[Column]:
    """Whatever is a number: the table's columns, and costs that it has none for."""
    known = [column for column in table.columns if column.numeric]
    keys = {column.key for column in known}
    return known + [column for column in quantizing_columns() if column.key not in keys]


def axes(table: Table) -> list[Axis]:
    """Every axis that some row has a finite number for."""
    found = []
    for column in drawn_columns(table):
        cells = [cell_of(row, column, table) for row in table.rows]
        finite = [number(cell, column) or 0.0 for cell in cells if _is_finite(cell)]
        if not finite:
            continue
        above = [value for value in finite if value > 0]
        log = bool(above) and min(finite) >= 0 and max(above) / min(above) > _LOG_FROM
        found.append(
            Axis(key=column.key, title=column.title, better=better(column, table), log=log)
        )
    return found


def first_axes(known: Sequence[Axis]) -> tuple[Axis, Axis]:
    """Bytes, and the metric that the fewest prompts decide; of one axis alone, it twice."""
    by_key = {axis.key: axis for axis in known}
    x = by_key.get(_BYTES, known[-1])
    y = next((by_key[key] for key in _QUALITY_FIRST if key in by_key), known[0])
    return x, y


def better(column: Column, table: Table) -> str:
    """Which way is better: a metric's own word; of a cost, less."""
    if column.metric is None:
        return "lower"
    said: set[bool | None] = {
        metric.higher_is_better
        for row in table.rows
        if (metric := row.pooled.record.metrics.get(column.metric)) is not None
    }
    if len(said) != 1 or None in said:
        return ""
    return "higher" if True in said else "lower"


def cell_of(row: Row, column: Column, table: Table) -> Cell:
    """The table's own cell; of a cost without a column, made of the record as a cell is."""
    for own, cell in zip(table.columns, row.cells, strict=True):
        if own.key == column.key:
            return cell
    return column.cell(row.pooled.record) if row.pooled.record.status == "ok" else Cell(text="-")


def number(cell: Cell, column: Column) -> float | None:
    """In the unit that is printed."""
    return None if not isinstance(cell.value, int | float) else cell.value * column.scale


def _is_finite(cell: Cell) -> bool:
    return isinstance(cell.value, int | float) and math.isfinite(cell.value)


def pareto_values(table: Table, *, x: Axis, y: Axis, model: str) -> list[dict[str, Any]]:
    """What `chart_specs.pareto` draws of one model; rows without both numbers are not there."""
    columns = {column.key: column for column in drawn_columns(table)}
    values = []
    for row in table.rows:
        record = row.pooled.record
        cells = {name: cell_of(row, columns[axis.key], table) for name, axis in _both(x, y)}
        drawable = all(map(_is_finite, cells.values())) and not any(
            axis.log and (number(cells[name], columns[axis.key]) or 0.0) <= 0
            for name, axis in _both(x, y)
        )
        if record.model != model or not drawable:
            continue
        value: dict[str, Any] = dict(zip(("model", "method", "bits"), _names(record), strict=True))
        for name, axis in _both(x, y):
            scale = columns[axis.key].scale
            cell = cells[name]
            ends = (cell.low, cell.high)
            whole = all(end is not None and math.isfinite(end) for end in ends)
            whole = whole and not (axis.log and (cell.low or 0.0) <= 0)
            value[name] = number(cell, columns[axis.key])
            value[f"{name}_text"] = cell.text
            value[f"{name}_low"], value[f"{name}_high"] = (
                (end or 0.0) * scale if whole else None for end in ends
            )
        values.append(value)
    return values


def _both(x: Axis, y: Axis) -> Iterator[tuple[str, Axis]]:
    yield "x", x
    yield "y", y


def _names(record: Record) -> tuple[str, str, str]:
    return record.model, record.method_label, record.bits_label


def row_content(number_: int, row: Row, extras: RowExtras, table: Table) -> dict[str, Any]:
    """What the script needs of a row at once."""
    record = row.pooled.record
    numbers = {}
    for column in drawn_columns(table):
        cell = cell_of(row, column, table)
        if cell.value is None or isinstance(cell.value, str):
            continue
        ends = [end if end is None else _short(end * column.scale) for end in (cell.low, cell.high)]
        numbers[column.key] = [_short(number(cell, column) or 0.0), *ends, cell.text]
    model, method, bits = _names(record)
    return {
        "row": number_,
        "model": model,
        "method": method,
        "bits": bits,
        "status": record.status,
        "reason": record.reason,
        "numbers": numbers,
        "steps": [[_short(p.mean), _end(p.low), _end(p.high)] for p in extras.steps],
        "inputs": extras.inputs,
        "references": extras.references,
        "quantized": row.kind == "method",
        "has_layers": bool(extras.layers),
        "has_codes": bool(extras.codes),
        "has_pictures": bool(extras.pictures),
    }


def _short(value: float) -> Any:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else plain_values(value)


def _end(value: float | None) -> Any:
    return None if value is None or not math.isfinite(value) else _short(value)


def packed_rows(page: PageData) -> list[str]:
    """Records, layers and histograms of the rows, compressed; part k holds 16 rows from 16 k on."""
    details = [
        _details(row, extras) for row, extras in zip(page.table.rows, page.rows, strict=True)
    ]
    starts = range(0, len(details), _PACKED_ROWS)
    return [_pack(details[start : start + _PACKED_ROWS]) for start in starts]


def _pack(content: Any) -> str:
    text = json.dumps(plain_values(content), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), _PRESSED, mtime=0)).decode()


def _details(row: Row, extras: RowExtras) -> dict[str, Any]:
    record = row.pooled.record
    content = encode_record(replace(record, layers_quantized=[], layers_kept=[]))
    kept: dict[str, list[str]] = {}
    for layer in record.layers_kept:
        kept.setdefault(layer["reason"], []).append(layer["name"])
    for name in ("layers_quantized", "layers_kept"):
        del content[name]
    if record.execution in SIMULATED:  # what a simulation takes is no speed of anything
        content["seconds"] = {k: v for k, v in record.seconds.items() if k not in _SPEEDS}
        content["metrics"].pop(_SECONDS, None)
    return {
        "command": extras.command,
        "draws": [cell.record.run_id for cell in row.pooled.cells],
        "quantized": len(record.layers_quantized),
        "kept": kept,
        "record": content,
        "layers": [
            [p.name, p.error, p.shape, p.kind, p.output_segments, p.input_segments, p.dual_scale,
             p.smoothing]
            for p in extras.layers
        ],
        "codes": [[h.layer, h.low, h.high, list(h.shares)] for h in extras.codes],
    }  # fmt: skip
