"""What a sweep leaves to look at: the table in three formats and the contact sheet."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.datasets.interface import Prompt
from evaluation.metrics.metric_catalogue import shown
from evaluation.records import Record
from evaluation.report.figures import contact_sheet
from evaluation.report.render import FORMATS, to_markdown
from evaluation.report.rows import Scored
from evaluation.report.tables import Table, make_table
from experiments.cell.cell import Cell
from experiments.cell.sampled_images import SampledImages
from experiments.cell.surroundings import Surroundings
from experiments.cell.sweep import Sweep
from experiments.store.entries import clear_way
from experiments.store.folders import write_text

log = logging.getLogger(__name__)

_SHEET_PROMPTS = 8
_SHEET_ROWS = 24  # of one contact sheet
_REFERENCE = ("reference (fp)", "")  # label and bits of a sheet's first row


@dataclass(frozen=True)
class Report:
    """The table to print, and the files that were written of it."""

    table: Table
    files: tuple[Path, ...]

    @property
    def markdown(self) -> str:
        return to_markdown(self.table)


@dataclass
class ReportFolder:
    """Where a sweep's reports go; if it cannot be written, that is said once."""

    sweep: Sweep
    files: list[Path] = field(default_factory=list)
    refused: bool = False

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Has a file written; what lies in its place and is none is set aside."""
        if self.refused:
            return
        path = self.sweep.folder / name
        try:
            self.sweep.store.ensure(self.sweep.folder)
            clear_way(path)
            write(path)
        except OSError as error:
            self.refused = True
            reason = error.strerror or str(error)
            sys.stderr.write(
                f"{self.sweep.folder}: cannot be written ({reason}); no report there\n"
            )
        else:
            self.files.append(path)

    def drop(self, pattern: str) -> None:
        """Takes away what an earlier report left and this one cannot make."""
        for path in self.sweep.folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def write_report(
    sweep: Sweep, records: Sequence[Record], *, makes: bool = False, table: Table | None = None
) -> Report:
    """Writes `table.md`, `table.csv`, `table.tex` and one contact sheet a model.

    Args:
        records: may lack cells that were asked for: they get a row that says so.
        makes: pictures of the contact sheets that are damaged are made again.
        table: None is that of the records.
    """
    if table is None:
        table = table_of(sweep, records)
    folder = ReportFolder(sweep)
    for suffix, render in FORMATS.items():
        folder.put(f"table.{suffix}", functools.partial(write_text, text=render(table)))
    if records:
        _contact_sheets(folder, records, makes=makes)
    return Report(table=table, files=tuple(folder.files))


def table_of(sweep: Sweep, records: Sequence[Record]) -> Table:
    """Every cell that was asked for is in it, whether it has a record or not."""
    known = {record.run_id for record in records}
    return make_table(
        scored(sweep, records),
        descriptions=shown(sweep.cells[0].around.metrics),
        missing=[cell.names for cell in sweep.cells if cell.run_id not in known],
        title=sweep.name,
    )


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


def tell_outdated(sweep: Sweep, records: Sequence[Record] | None = None) -> None:
    """Says of how many cells the metrics were measured by other code than today's.

    Args:
        records: the sweep's, where they are read already.
    """
    known = {one.run_id: one for one in (sweep.records() if records is None else records)}
    pairs = ((cell, known.get(cell.run_id)) for cell in sweep.cells)
    count = sum(record is not None and not cell.is_current(record) for cell, record in pairs)
    if count:
        sys.stderr.write(
            f"{count} of {len(sweep.cells)} cells have metrics of other code or settings than "
            "today's; segbench evaluate measures them again, from the images on disk\n"
        )


def _contact_sheets(folder: ReportFolder, records: Sequence[Record], *, makes: bool) -> None:
    done = {record.run_id for record in records if record.status == "ok"}
    rows: dict[str, dict[tuple[str, str], Path]] = {}
    first: dict[str, Cell] = {}
    for cell in folder.sweep.cells:
        model, method, bits = cell.names
        if cell.run_id not in done:
            continue
        if not _can_be_shown(cell.reference, makes=makes):
            if cell.reference.folder.is_dir():
                folder.drop(f"contact_sheet_{model}*.png")
            continue
        first.setdefault(model, cell)
        rows.setdefault(model, {_REFERENCE: cell.reference.folder})
        same = cell.images.folder == cell.reference.folder
        if not same and _can_be_shown(cell.images, makes=makes):
            rows[model][f"{method} {bits}", bits] = cell.images.folder
    for model, folders in rows.items():
        prompts = _shown_prompts(first[model].around)
        for suffix, part in _sheets(folders).items():
            draw = functools.partial(
                contact_sheet,
                {label: path for (label, _), path in part.items()},
                [prompt.id for prompt in prompts],
                {prompt.id: prompt.shown for prompt in prompts},
                _REFERENCE[0],
                groups=dict(part.keys()),
            )
            folder.put(f"contact_sheet_{model}{suffix}.png", draw)


def _shown_prompts(around: Surroundings) -> Sequence[Prompt]:
    return around.dataset.evaluation[:_SHEET_PROMPTS]


def _can_be_shown(images: SampledImages, *, makes: bool) -> bool:
    """Whether the pictures of a contact sheet are what was written; a damaged one is named.

    A folder that is gone is left alone: records and tables need none.
    """
    if not images.folder.is_dir():
        return False
    ids = [prompt.id for prompt in _shown_prompts(images.around)]
    damaged = images.damaged(ids)
    if damaged is None:
        return True
    again = "segbench run makes it again"
    if makes and images.around.makes:
        try:
            images.build()
            return True
        except Exception as error:  # the records and the table are there all the same
            log.debug("%s", images.folder, exc_info=True)
            again = f"and it cannot be made again ({type(error).__name__}: {error})"
    sys.stderr.write(
        f"{damaged} is not what was written: the contact sheet leaves its row out; {again}\n"
    )
    return False


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
