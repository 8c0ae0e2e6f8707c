"""A sweep's page: what its records say, and what of the store a reader wants to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evaluation.metrics.metric_interface import DELTA
from evaluation.report.columns import Column
from evaluation.report.folder_page import RANKED_BY
from evaluation.report.marks import Row
from evaluation.report.page_data import PageData, RowExtras
from evaluation.report.rows import FLOAT_METHOD
from evaluation.report.tables import Table
from experiments.cell.calibration_pass import calibration_of
from experiments.config.cell_words import run_command, shell_line
from experiments.pages.row_layers import code_histograms, layer_points, told_layers
from experiments.pages.seen_inputs import (
    find_calibration,
    input_histograms,
    input_ranges,
    read_seen,
)
from experiments.pages.shown_pictures import (
    RankedBy,
    pictures_of,
    references_of,
    worst_prompts,
)
from experiments.pages.step_curves import step_points

if TYPE_CHECKING:
    from evaluation.records import Record
    from evaluation.report.rows import Scores
    from experiments.cell.cell import Cell
    from experiments.cell.sweep import Sweep

MOST_PICTURED_ROWS = 24
MOST_CODED_ROWS = 48
_MOST_LAYERS = 6  # with histograms
_FEWEST_PICTURED = 4  # prompts; with more rows there are fewer prompts
_PICTURES = 288  # of rows, over the whole page


@dataclass(kw_only=True)
class _Gathering:
    """A page while it is filled."""

    sweep: Sweep
    table: Table
    prompts: int
    rows: list[RowExtras]
    cells: dict[int, Cell]  # row -> its first cell
    page: PageData
    told: dict[str, list[str]] = field(default_factory=dict)  # calibration -> Linears to look at


def page_of(sweep: Sweep, table: Table, *, words: Sequence[str], prompts: int) -> PageData:
    """Looks at the store alone; what is not in it any more is said to be left out.

    Args:
        words: after `segbench report`, which make this page.
        prompts: whose images are shown, of each row.
    """
    rows = [RowExtras() for _ in table.rows]
    command = shell_line("report", words)
    page = PageData(title=sweep.name, command=command, table=table, rows=rows)
    by_id = {cell.run_id: cell for cell in sweep.cells}
    first = {number: row.pooled.cells[0].record.run_id for number, row in enumerate(table.rows)}
    cells = {number: by_id[run_id] for number, run_id in first.items() if run_id in by_id}
    gathering = _Gathering(
        sweep=sweep, table=table, prompts=prompts, rows=rows, cells=cells, page=page
    )
    _commands(gathering, words)
    _layers(gathering)
    for number, cell in gathering.cells.items():
        if _record(table.rows[number]).status == "ok":
            rows[number].steps = step_points(cell)
    left_out = [*_codes(gathering), *_pictures(gathering)]
    page.left_out = left_out
    return page


def _record(row: Row) -> Record:
    return row.pooled.cells[0].record


def _commands(gathering: _Gathering, words: Sequence[str]) -> None:
    """Of every row, missing ones too: of all its draws, a line each."""
    by_id = {cell.run_id: cell for cell in gathering.sweep.cells}
    by_names: dict[tuple[str, ...], list[Cell]] = {}
    for cell in gathering.sweep.cells:
        by_names.setdefault(cell.names, []).append(cell)
    whole = shell_line("run", _as_run(words))
    for row, extras in zip(gathering.table.rows, gathering.rows, strict=True):
        own = [by_id[one.record.run_id] for one in row.pooled.cells if one.record.run_id in by_id]
        record = row.pooled.record
        names = (record.model, record.method_label, record.bits_label)
        cells = own or by_names.get(names, [])
        said = [run_command(cell.config) or whole for cell in cells]
        extras.command = "\n".join(dict.fromkeys(said))


def _as_run(words: Sequence[str]) -> list[str]:
    """`report`'s words as `run` takes them."""
    first, *rest = words
    named = first if "=" in first else f"+experiment={first}"
    several = ["-m"] if named == first else []
    return [*several, named, *rest]


def _layers(gathering: _Gathering) -> None:
    """Errors and cuts from the records; inputs from the calibrations, once each."""
    points: dict[str, list[int]] = {}
    for number, cell in gathering.cells.items():
        record = _record(gathering.table.rows[number])
        if record.status != "ok" or cell.quantized is None:
            continue
        gathering.rows[number].layers = layer_points(record)
        gathering.rows[number].inputs = calibration_of(cell.around).hash
        points.setdefault(gathering.rows[number].inputs, []).append(number)
    inputs, activations = {}, {}
    for key, numbers in points.items():
        finished = find_calibration([gathering.cells[number] for number in numbers])
        most = max(numbers, key=lambda number: _interest(gathering.rows[number]))
        told = told_layers(gathering.rows[most].layers, most=_MOST_LAYERS)
        gathering.told[key] = told
        seen = None if finished is None else read_seen(finished)
        if seen is not None:
            inputs[key] = input_ranges(seen)
            activations[key] = input_histograms(seen, told)
    gathering.page.inputs, gathering.page.activations = inputs, activations


def _interest(row: RowExtras) -> int:
    """Of rows of one calibration, the one with the most kinds of Linears says which to show."""
    return len({point.kind for point in row.layers})


def _codes(gathering: _Gathering) -> list[str]:
    """Histograms of weight codes, of the first rows alone where there are many."""
    shown = gone = cut = 0
    for number, cell in gathering.cells.items():
        row = gathering.rows[number]
        if not row.layers or cell.quantized is None:
            continue
        if shown >= MOST_CODED_ROWS:
            cut += 1
            continue
        finished = cell.quantized.find()
        row.codes = (
            [] if finished is None else code_histograms(finished, gathering.told[row.inputs])
        )
        shown += bool(row.codes)
        gone += not row.codes
    lines = []
    if cut:
        lines.append(
            f"Histograms of weights: those of {shown} rows; {cut} more are left out to keep the "
            "page small. Fewer rows (method=..., bits=...) bring them."
        )
    if gone:
        lines.append(f"Histograms of weights: of {gone} rows the store holds no checkpoint.")
    return lines


def _pictures(gathering: _Gathering) -> list[str]:
    """Images of the rows that are shown, of the prompts that are worst in most of them."""
    by_model: dict[int, list[int]] = {}
    for number, cell in gathering.cells.items():
        record = _record(gathering.table.rows[number])
        if record.status == "ok" and record.method != FLOAT_METHOD:
            by_model.setdefault(id(cell.around), []).append(number)
    total = sum(map(len, by_model.values()))
    if not total or not gathering.prompts:
        return ["Images: none asked for."] if total else []
    share = max(1, MOST_PICTURED_ROWS // len(by_model))
    taken = {key: _spread(numbers, share) for key, numbers in by_model.items()}
    count = sum(map(len, taken.values()))
    prompts = min(gathering.prompts, max(_FEWEST_PICTURED, _PICTURES // count))
    shown, ordered, evaluated = 0, "", 0
    for numbers in taken.values():
        drawn, ordered, evaluated = _picture_rows(gathering, numbers, prompts)
        shown += drawn
    if ordered:
        prompts = min(prompts, evaluated)
        gathering.page.ordered_by = (
            f"{prompts} of {evaluated} prompts: those that are farthest from the reference by "
            f"{ordered}, by their mean rank over the rows shown; of a row the worst comes first. "
            "Images are small here; the metrics are of the originals."
        )
    lines = []
    if count < total:
        lines.append(
            f"Images: {shown} of {total} rows, spread over the bit-widths, to keep the page small. "
            "Fewer rows (method=..., bits=...) bring the others."
        )
    if shown < count:
        lines.append(
            f"Images: of {count - shown} rows they are not in the store any more, or not scored."
        )
    return lines


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """Evenly, the first among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[place * len(numbers) // most] for place in range(most)]


def _picture_rows(
    gathering: _Gathering, numbers: Sequence[int], prompts: int
) -> tuple[int, str, int]:
    """Rows of one model. Returns rows drawn, what ranks the prompts, prompts that there are."""
    scores: Mapping[int, Scores] = {
        number: gathering.table.rows[number].pooled.cells[0].scores for number in numbers
    }
    by = _ranked_by(gathering.table, list(scores.values()))
    if by is None:
        return 0, "", 0
    key = by.column.per_image
    scored = {number: own for number, own in scores.items() if key in own}
    ids = worst_prompts([by.badness(own) for own in scored.values()], most=prompts)
    first = gathering.cells[next(iter(scored))]
    references = references_of(first, ids)
    if not references:
        return 0, "", 0
    name = f"{first.config.model.name} {first.reference.hash}"
    gathering.page.references = {**gathering.page.references, name: references}
    columns = [
        column
        for column in gathering.table.columns
        if _of_one_image(column, first.run_id, gathering)
    ]
    drawn = 0
    for number, own in scored.items():
        row = gathering.rows[number]
        row.pictures = pictures_of(gathering.cells[number], ids, scores=own, columns=columns, by=by)
        row.references = name
        drawn += bool(row.pictures)
    return drawn, by.column.title, len(first.around.dataset.evaluation)


def _of_one_image(column: Column, run_id: str, gathering: _Gathering) -> bool:
    """Whether a score says something of one image: an image's part of a distance does not."""
    for row in gathering.table.rows:
        metric = row.pooled.cells[0].record.metrics.get(column.metric or "")
        if row.pooled.cells[0].record.run_id == run_id and metric is not None:
            return metric.interval_kind != "sd" and not column.key.endswith(DELTA)
    return False


def _ranked_by(table: Table, scores: Sequence[Scores]) -> RankedBy | None:
    """The metric of a comparison of folders that is there, image by image."""
    for name in RANKED_BY:
        column: Column | None = next((c for c in table.columns if c.metric == name), None)
        if column is None or not any(column.per_image in own for own in scores):
            continue
        said = [
            metric.higher_is_better
            for row in table.rows
            if (metric := row.pooled.record.metrics.get(name)) is not None
        ]
        return RankedBy(column=column, higher_is_better=bool(said and said[0]))
    return None
