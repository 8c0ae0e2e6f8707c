"""Markdown, CSV and LaTeX of a table."""

from __future__ import annotations

import csv
import io

from evaluation.report.columns import Cell
from evaluation.report.markdown import pipe_table, plain_line, plain_text
from evaluation.report.marks import Row
from evaluation.report.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "‡": r"$\ddagger$",
    "↓": r"$\downarrow$",
    "|": r"\textbar{}",  # a dash in LaTeX's own encoding
}


def to_markdown(table: Table) -> str:
    """A pipe table with its caption above, and the legend and notes under it."""
    titles = [plain_text(column.title) for column in table.columns]
    body = [[_markdown_cell(cell) for cell in row.cells] for row in table.rows]
    lines = [
        plain_line(table.caption),
        "",
        pipe_table(titles, body, numeric=[column.numeric for column in table.columns]),
        "",
        *(f"- {plain_line(line)}" for line in table.legend),
        *(f"- ({number}) {plain_text(note)}" for number, note in enumerate(table.notes, 1)),
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Full precision: each numeric column as value, `_low` and `_high`; marks in `notes`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = []
    for column in table.columns:
        header += [column.key]
        header += [f"{column.key}_low", f"{column.key}_high"] if column.numeric else []
    writer.writerow([*header, "kind", "n", "reason", "notes"])
    for row in table.rows:
        writer.writerow(_csv_row(row, table=table))
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules (`\usepackage{booktabs}`); legend and notes are in it."""
    alignment = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    previous = None
    for row in table.rows:
        if previous is not None and row.pooled.record.model != previous:
            lines.append(r"\midrule")
        previous = row.pooled.record.model
        lines.append(" & ".join(_latex_cell(cell) for cell in row.cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\footnotesize"]
    lines += [escape_latex(line) + r"\par" for line in table.legend]
    lines += [
        escape_latex(f"({number}) {note}") + r"\par" for number, note in enumerate(table.notes, 1)
    ]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


FORMATS = {"md": to_markdown, "csv": to_csv, "tex": to_latex}  # by file suffix


def escape_latex(text: str) -> str:
    """Every character that LaTeX reads as its own is written so that it prints as itself."""
    one_line = " ".join(text.split())
    signs = "".join(_LATEX.get(character, character) for character in one_line)
    apart = signs.replace("--", "-{}-").replace("``", "`{}`").replace("''", "'{}'")
    # after a row's end or a rule these would be an argument
    return f"{{{apart[0]}}}{apart[1:]}" if apart.startswith(("[", "*")) else apart


def _markdown_cell(cell: Cell) -> str:
    text = plain_text(cell.text)
    if cell.bold:
        text = f"**{text}**"
    return " ".join([text, *(plain_text(mark) for mark in cell.marks)])


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    marks = " ".join(escape_latex(mark) for mark in cell.marks)
    return rf"{text}\textsuperscript{{{marks}}}" if marks else text


def _csv_row(row: Row, *, table: Table) -> list[str]:
    values: list[str] = []
    marks: list[str] = []
    for column, cell in zip(table.columns, row.cells, strict=True):
        if column.numeric:
            values += [_csv_number(cell.value), _csv_number(cell.low), _csv_number(cell.high)]
        else:
            values.append("" if cell.value is None else str(cell.value))
        marks += [f"{column.key}: {mark}" for mark in cell.marks if not mark.startswith("(")]
        if cell.note and column.key != "status":
            marks.append(f"{column.key}: {cell.note}")
    sizes = sorted({metric.n for metric in row.pooled.record.metrics.values() if metric.n})
    shown = " ".join(map(str, sizes))
    return [*values, row.kind, shown, row.pooled.record.reason, "; ".join(marks)]


def _csv_number(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(float(value))
