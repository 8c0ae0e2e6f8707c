"""Tables that are not of cells: measured on what a run left in the store, kept as a csv.

A study is a module in `experiments/paper/` with `measure(sweep) -> Measured`, which makes no stage,
and `table(measured, asked=, setup=) -> Table`, which reads nothing but what was measured.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from evaluation.records import Record
from evaluation.report.columns import NO_VALUE, Cell
from evaluation.report.marks import Row
from evaluation.report.rows import Pooled, Scored
from evaluation.report.tables import Table
from evaluation.statistics import mean_over_runs
from experiments.errors import UserError
from experiments.paper.joined_table import BLANK, Asked
from experiments.paper.paper_setup import PaperSetup

if TYPE_CHECKING:
    from experiments.cell.cell import Cell as SweptCell
    from experiments.cell.sweep import Sweep

STUDIES = (
    *("layer_errors", "polarity_shares", "graph_coverage"),
    *("error_curves", "draws_apart", "kernel_times", "factor_effects", "error_coherence"),
)
MEASURED = "measured.csv"
MISSING_COLUMN = "missing"


@dataclass(kw_only=True)
class Measured:
    """Rows of text and numbers under one head; `missing`: what could not be, each with why."""

    head: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **values: Any) -> None:
        self.rows.append({name: values.get(name, "") for name in (*self.head, MISSING_COLUMN)})

    @property
    def there(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if not row[MISSING_COLUMN]]

    @property
    def missing(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row[MISSING_COLUMN]]

    def text(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow((*self.head, MISSING_COLUMN))
        for row in self.rows:
            writer.writerow([_shown(value) for value in row.values()])
        return buffer.getvalue()


def _shown(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def read_measured(path: Path) -> Measured:
    """What `Measured.text` gave; numbers are text until they are asked for."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        head = tuple(reader.fieldnames or ())
        if head[-1:] != (MISSING_COLUMN,):
            raise UserError(f"{path}: not a study's {MEASURED}")
        return Measured(head=head[:-1], rows=list(reader))


class Study(Protocol):
    """One of the modules."""

    def measure(self, sweep: Sweep) -> Measured: ...

    def table(self, measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table: ...


def study_of(setup: PaperSetup) -> Study:
    """The module that `paper.study` names.

    Raises:
        UserError: there is none.
    """
    if setup.study not in STUDIES:
        raise UserError(f"paper.study={setup.study}; choose one of {', '.join(STUDIES)}")
    return cast(Study, importlib.import_module(f"experiments.paper.{setup.study}"))


def text_table(
    titles: Sequence[str],
    body: Sequence[Sequence[str | Cell]],
    *,
    caption: str,
    legend: Sequence[str],
    asked: Asked,
    measured: Measured,
    run: bool = True,
) -> Table:
    """A table whose cells are given; what is missing is a row of its own, with the reason.

    Args:
        run: whether the experiment has to run first; else the table alone measures all.
    """
    width = len(titles)
    kinds: dict[tuple[str, str], int] = {}
    for row in measured.missing:
        names = " ".join(str(row[name]) for name in ("model", "method", "bits") if row.get(name))
        key = (names, str(row[MISSING_COLUMN]))
        kinds[key] = kinds.get(key, 0) + 1
    lost = [
        [names, f"missing ({count}): {why}", *[NO_VALUE] * (width - 2)]
        for (names, why), count in kinds.items()
    ]
    table = " ".join(["segbench table", asked.name, *asked.words])
    maker = asked.command if run else table
    made = f"{asked.command}, then segbench table {asked.name}" if run else table
    lines = [f"Made by: {made}."]
    if lost:
        lines.append(f"Missing: {len(measured.missing)} rows. This makes them: {maker}")
    columns = [
        replace(BLANK, key=title.lower().replace(" ", "_"), title=title, numeric=False)
        for title in titles
    ]
    rows = [_row([_cell(one) for one in cells]) for cells in [*body, *lost]]
    return Table(caption=caption, columns=columns, rows=rows, legend=[*lines, *legend], notes=[])


def _cell(given: str | Cell) -> Cell:
    return given if isinstance(given, Cell) else Cell(text=given or NO_VALUE, value=given)


def _row(cells: list[Cell]) -> Row:
    record = Record(
        run_id="", status="ok", model=cells[0].text, method="", bits="", dataset="", seed=0
    )
    return Row(pooled=Pooled(record=record, cells=(Scored(record=record),)), kind="", cells=cells)


def said_of(cell: SweptCell) -> dict[str, Any]:
    """The columns that say which cell, and of which calibration draw."""
    model, method, bits = cell.names
    draw = cell.config.dataset.calibration_seed
    return {"model": model, "method": method, "bits": bits, "draw": draw}


def measure_cells(
    sweep: Sweep,
    measured: Measured,
    *,
    measure: Callable[[SweptCell, dict[str, Any]], None],
    said: Callable[[SweptCell], dict[str, Any]] = said_of,
) -> Measured:
    """Measures cell by cell, a model at a time; what the store does not have is a missing row.

    Args:
        measure: adds a cell's rows, each with what `said` says of the cell.
    """
    for group in sweep.groups():
        for cell in group:
            columns = said(cell)
            try:
                measure(cell, columns)
            except UserError as error:
                measured.add(**columns, missing=" ".join(str(error).split()))
        group[0].around.release()
    return measured


def over_draws(by_draw: Sequence[float]) -> str:
    """Mean with Student's 95 % interval; of one draw the number alone."""
    if len(by_draw) < 2:
        return f"{by_draw[0]:.3f}"
    found = mean_over_runs(by_draw)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
