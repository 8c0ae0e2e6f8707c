"""What a sweep leaves to look at: the table in three formats and the contact sheet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.metrics.metric_catalogue import shown
from evaluation.records import Record
from evaluation.report.figures import contact_sheet
from evaluation.report.render import FORMATS, to_markdown
from evaluation.report.rows import Scored
from evaluation.report.tables import make_table
from experiments.cell.cell import Cell
from experiments.cell.sweep import Sweep
from experiments.store.folders import write_text

_SHEET_PROMPTS = 8
_SHEET_ROWS = 24  # of one contact sheet
_REFERENCE = ("reference (fp)", "")  # label and bits of a sheet's first row


@dataclass(frozen=True)
class Report:
    """Files written and the table to print."""

    markdown: str
    files: tuple[Path, ...]


def write_report(sweep: Sweep, records: Sequence[Record]) -> Report:
    """Writes `table.md`, `table.csv`, `table.tex` and one contact sheet a model.

    `records` may lack cells that were asked for: they get a row that says so.
    """
    known = {record.run_id for record in records}
    table = make_table(
        scored(sweep, records),
        descriptions=shown(sweep.cells[0].around.metrics),
        missing=[cell.names for cell in sweep.cells if cell.run_id not in known],
        title=sweep.name,
    )
    files = []
    for suffix, render in FORMATS.items():
        path = sweep.folder / f"table.{suffix}"
        write_text(path, render(table))
        files.append(path)
    files += _contact_sheets(sweep, records)
    return Report(markdown=to_markdown(table), files=tuple(files))


def scored(sweep: Sweep, records: Sequence[Record] | None = None) -> list[Scored]:
    """Each record once, with its scores image by image where it is done.

    Args:
        records: those to look at; None for every one that is done.
    """
    cells = {cell.run_id: cell for cell in sweep.cells}
    if records is None:
        records = [record for record in sweep.records() if record.status == "ok"]
    found = {}
    for record in records:
        cell = cells.get(record.run_id)
        done = cell is not None and record.status == "ok"
        scores = cell.read_scores(record) if cell is not None and done else {}
        found[record.run_id, record.method_label] = Scored(record=record, scores=scores)
    return list(found.values())


def tell_outdated(sweep: Sweep) -> None:
    """Says of how many cells the metrics were measured by other code than today's."""
    pairs = ((cell, cell.read_record()) for cell in sweep.cells)
    count = sum(record is not None and not cell.is_current(record) for cell, record in pairs)
    if count:
        sys.stderr.write(
            f"{count} of {len(sweep.cells)} cells have metrics of other code or settings than "
            "today's; segbench evaluate measures them again, from the images on disk\n"
        )


def _contact_sheets(sweep: Sweep, records: Sequence[Record]) -> list[Path]:
    done = {record.run_id for record in records if record.status == "ok"}
    rows: dict[str, dict[tuple[str, str], Path]] = {}
    first: dict[str, Cell] = {}
    for cell in sweep.cells:
        model, method, bits = cell.names
        reference = cell.reference.folder
        if cell.run_id not in done or not reference.is_dir():
            continue
        first.setdefault(model, cell)
        rows.setdefault(model, {_REFERENCE: reference})
        if cell.images.folder != reference:
            rows[model][f"{method} {bits}", bits] = cell.images.folder
    written = []
    for model, folders in rows.items():
        prompts = first[model].around.dataset.evaluation[:_SHEET_PROMPTS]
        for suffix, part in _sheets(folders).items():
            path = sweep.folder / f"contact_sheet_{model}{suffix}.png"
            contact_sheet(
                {label: folder for (label, _), folder in part.items()},
                [prompt.id for prompt in prompts],
                {prompt.id: prompt.text for prompt in prompts},
                _REFERENCE[0],
                path,
                groups=dict(part.keys()),
            )
            written.append(path)
    return written


def _sheets(folders: dict[tuple[str, str], Path]) -> dict[str, dict[tuple[str, str], Path]]:
    """One sheet by file suffix, or one for each bit-width where one would be too long."""
    if len(folders) <= _SHEET_ROWS:
        return {"": folders}
    widths = dict.fromkeys(bits for _, bits in folders if bits)
    return {
        f"_{bits.replace(' ', '_')}": {
            key: path for key, path in folders.items() if key == _REFERENCE or key[1] == bits
        }
        for bits in widths
    }
