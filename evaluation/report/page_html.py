"""The report as one HTML page: nothing is loaded from anywhere, and every text is shown as text.

The table is plain HTML and is read without JavaScript. What unfolds, filters and draws is in
`page_assets`, which is put into the page whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from evaluation.records import Record
from evaluation.report.chart_specs import (
    LAYER_KINDS,
    error_by_layer,
    error_over_steps,
    histograms,
    pareto,
)
from evaluation.report.columns import NO_VALUE, NOT_APPLICABLE, Cell, Column
from evaluation.report.marks import Row
from evaluation.report.page_data import PageData, plain_values
from evaluation.report.page_rows import (
    axes,
    drawn_columns,
    first_axes,
    names_of,
    packed_rows,
    row_content,
)
from evaluation.report.tables import Table

PAGE = "report.html"  # what the file is called
_ASSETS = Path(__file__).parent / "page_assets"
_SCRIPTS = ("page_table.js", "page_details.js", "page_charts.js", "page_pictures.js")
# no address may be asked for anything; Vega compiles its expressions, which is `unsafe-eval`
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; base-uri 'none'; form-action 'none'"
)
_PINNED = "pinned"  # stays where it is when the table is moved
_SECTIONS = (
    ("table", "Table"),
    ("pareto", "Quality and cost"),
    ("steps", "Error over steps"),
    ("layers", "Layers"),
    ("values", "Weights and activations"),
    ("pictures", "Images"),
    ("reading", "How to read it"),
)


def render_page(page: PageData, *, chart_script: str) -> str:
    """The whole file.

    Args:
        chart_script: JavaScript that leaves `window.vegaEmbed`.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        _head(page),
        "<body>",
        _header(page),
        "<main>",
        _table_section(page),
        *(_drawn_section(name, title) for name, title in _SECTIONS[1:-1]),
        _reading(page),
        "</main>",
        _data("data", _content(page)),
        _data("packed", packed_rows(page)),
        _data("pictured", _pictures(page)),
        *(f"<script>{_inline(_asset(name))}</script>" for name in _SCRIPTS),
        f"<script>{_inline(chart_script)}</script>",  # after what makes the table usable
        "<script>startDrawing();</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _head(page: PageData) -> str:
    return (
        '<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(page.title)}</title>"
        f"<style>{_asset('page.css')}</style></head>"
    )


def _header(page: PageData) -> str:
    states = Counter(row.pooled.record.status for row in page.table.rows)
    counts = ", ".join(
        f'<span class="state {escape(status)}">{count} {escape(status)}</span>'
        for status, count in sorted(states.items(), key=lambda item: (item[0] != "ok", item[0]))
    )
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in _SECTIONS)
    left_out = "".join(f"<li>{escape(line)}</li>" for line in page.left_out)
    return (
        f"<header><h1>{escape(page.title)}</h1>"
        f"<p>{escape(page.table.caption)}</p>"
        f"<p>{len(page.table.rows)} rows: {counts}. "
        f"Made by <code>{escape(page.command)}</code>.</p>"
        + (
            f'<details class="left-out"><summary>Not on this page</summary><ul>{left_out}</ul>'
            "</details>"
            if left_out
            else ""
        )
        + f'<nav aria-label="sections">{links}</nav></header>'
    )


def _table_section(page: PageData) -> str:
    hidden = hidden_columns(page.table)
    head = "".join(_column_head(column, hidden) for column in page.table.columns)
    body = "\n".join(_row(number, row, page, hidden) for number, row in enumerate(page.table.rows))
    return (
        '<section id="table"><h2>Table</h2>'
        '<div class="filters" id="filters"></div>'
        '<p class="quiet" id="shown" role="status"></p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="table of all rows">'
        f'<table id="rows"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        "</section>"
    )


def hidden_columns(table: Table) -> set[str]:
    """Which the page opens without: those of which no row has a number, and a model that all have.

    The page says how many, and its filters bring them.
    """
    models = {row.pooled.record.model for row in table.rows}
    hidden = {"model"} if len(models) < 2 else set()
    for index, column in enumerate(table.columns):
        if column.numeric and all(row.cells[index].value is None for row in table.rows):
            hidden.add(column.key)
    return hidden


def _kinds(column: Column, hidden: set[str]) -> list[str]:
    """Classes of a column's cells."""
    kinds = ["number"] if column.numeric else ["text"]
    kinds += [_PINNED] if column.key == "method" else []
    return kinds + (["hidden"] if column.key in hidden else [])


def _column_head(column: Column, hidden: set[str]) -> str:
    kind = " ".join(_kinds(column, hidden))
    return (
        f'<th scope="col" class="{kind}" data-key="{escape(column.key)}" aria-sort="none">'
        f'<button type="button" title="{escape(column.legend)}">{escape(column.title)}</button>'
        "</th>"
    )


def _row(number: int, row: Row, page: PageData, hidden: set[str]) -> str:
    record = row.pooled.record
    cells = [
        _cell(
            column,
            cell,
            page.table.notes,
            kinds=_kinds(column, hidden),
            record=record if column.key == "method" else None,
        )
        for column, cell in zip(page.table.columns, row.cells, strict=True)
    ]
    status = escape(record.status)
    return f'<tr data-row="{number}" class="{status} {escape(row.kind)}">{"".join(cells)}</tr>'


def _cell(
    column: Column, cell: Cell, notes: Sequence[str], *, kinds: list[str], record: Record | None
) -> str:
    """`record`: of the cell with the row's name, where what unfolds and its status stand too."""
    text = escape(cell.text)
    if cell.bold:
        text = f"<b>{text}</b>"
    for mark in cell.marks:
        text += f' <span class="mark"{_title(_note_of(mark, notes))}>{escape(mark)}</span>'
    if record is not None:
        name = escape(f"unfold {record.method_label} {record.bits_label}")
        text = (
            f'<button type="button" class="unfold" aria-expanded="false" aria-label="{name}">▸'
            f"</button>{text}"
        )
        if record.status != "ok":
            status = escape(record.status)
            text += f' <span class="state {status}">{status}</span>'
    kinds = [kind for kind in kinds if kind != "text"]
    kinds += ["nothing"] if cell.text in (NO_VALUE, NOT_APPLICABLE) else []
    shown = f' class="{" ".join(kinds)}"' if kinds else ""
    if column.key == "status" and cell.note:
        text += f' <span class="reason">{escape(cell.note)}</span>'
    return f"<td{shown}>{text}</td>"


def _note_of(mark: str, notes: Sequence[str]) -> str:
    numbered = {f"({number})": note for number, note in enumerate(notes, 1)}
    return numbered.get(mark, "")


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def _drawn_section(name: str, title: str) -> str:
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><div class="controls"></div>'
        '<div class="chart"></div><div class="beside"></div>'
        "<noscript><p>Drawn by JavaScript, which is off.</p></noscript></section>"
    )


def _reading(page: PageData) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in page.table.legend)
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.table.notes)
    return (
        f'<section id="reading"><h2>How to read it</h2><ul class="legend">{lines}</ul>'
        + (f'<h3>Notes</h3><ol class="legend">{notes}</ol>' if notes else "")
        + "</section>"
    )


def _content(page: PageData) -> dict[str, Any]:
    """What the script reads at once."""
    table, names, hidden = page.table, names_of(page.table), hidden_columns(page.table)
    known = axes(table)
    charts: dict[str, Any] = {
        "steps": error_over_steps(names),
        "layers": error_by_layer(names),
        "activations": histograms(title="input of the Linear", of_codes=False),
        "codes": histograms(title="code of the weight", of_codes=True),
    }
    if known:
        x, y = first_axes(known)
        charts |= {"pareto": pareto(x, y, names), "axes": [x.key, y.key]}
    legends = {column.key: column.legend for column in drawn_columns(table)}
    return {
        "title": page.title,
        "columns": [
            {"key": c.key, "title": c.title, "numeric": c.numeric, "hidden": c.key in hidden}
            for c in table.columns
        ],
        "axes": [{**asdict(axis), "legend": legends[axis.key]} for axis in known],
        "methods": list(names.methods),
        "bits": list(names.bits),
        "kinds": list(LAYER_KINDS),
        "charts": charts,
        "rows": [
            row_content(number, row, extras, table)
            for number, (row, extras) in enumerate(zip(table.rows, page.rows, strict=True))
        ],
        "inputs": {
            key: {
                name: [round(seen.negative_share, 4), seen.low, seen.high]
                for name, seen in layers.items()
            }
            for key, layers in page.inputs.items()
        },
        "activations": {
            key: [[h.layer, h.low, h.high, list(h.shares)] for h in shown]
            for key, shown in page.activations.items()
        },
        "ordered_by": page.ordered_by,
    }


def _pictures(page: PageData) -> dict[str, Any]:
    """Apart from the rest, as it is most of the page and is read when it is looked at."""
    references = {
        key: {name: [one.prompt, one.image] for name, one in shown.items()}
        for key, shown in page.references.items()
    }
    rows = {
        str(number): [
            [p.prompt_id, p.image, p.difference, p.gain, p.rank, dict(p.scores)]
            for p in extras.pictures
        ]
        for number, extras in enumerate(page.rows)
        if extras.pictures
    }
    return {"references": references, "rows": rows}


def _data(name: str, content: Any) -> str:
    """JSON that no text in it can end: `<`, `>` and `&` are escapes of JSON's own."""
    text = json.dumps(plain_values(content), separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _inline(script: str) -> str:
    """A script as HTML takes it: no word in it ends the element or opens a comment."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
