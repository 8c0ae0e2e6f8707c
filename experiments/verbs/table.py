"""`segbench table`: a sweep's table again, from its records; beside a paper's, if it has one."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from evaluation.metrics.metric_catalogue import shown
from evaluation.records import encode_record
from evaluation.report.chart_files import NoCharts
from evaluation.report.render import FORMATS
from evaluation.report.rows import Scored
from evaluation.report.tables import Table
from experiments.cell.sweep import Sweep
from experiments.config.places import options as choices
from experiments.errors import UserError
from experiments.paper.claims import claims_table, find_claims
from experiments.paper.joined_table import Asked, experiment_table
from experiments.paper.kept_cells import KEPT, kept_text
from experiments.paper.paper_charts import (
    CONTACT_SHEETS,
    Chart,
    charts_of_cells,
    charts_of_measured,
    write_charts,
)
from experiments.paper.paper_setup import PaperSetup, paper_setup
from experiments.paper.studies_of_stages import study_of
from experiments.store.folders import write_text
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import ReportFolder, tell_outdated, write_report
from experiments.verbs.words import add_recorded, no_record, recorded_sweep


@dataclass
class _Found:
    """Cells with a record, names of those without, and why some cannot even be looked for."""

    cells: list[Scored] = field(default_factory=list)
    missing: list[tuple[str, str, str]] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recorded(parser)
    parser.add_argument("--format", choices=tuple(FORMATS), default="md")
    parser.add_argument(
        "--costs",
        action="store_true",
        help="columns of what quantizing took: forwards, seconds, memory, extra products",
    )


def run(options: argparse.Namespace) -> Answer:
    """Looks at records alone: nothing is measured, whatever code has changed since.

    A table that is not of cells is measured on the stages that are in the store.
    """
    sweep = recorded_sweep(options)
    named = sweep.name in choices("experiment")
    setup = paper_setup(sweep.name) if named else None
    if options.costs:
        setup = replace(setup or PaperSetup(), costs=True)
    asked = Asked(
        name=sweep.name,
        words=tuple(options.overrides),
        configs=tuple(cell.config for cell in sweep.cells),
    )
    if setup is not None and setup.study is not None:
        return _study(sweep, setup, asked, format_=options.format)
    found = _find(sweep)
    if not found.cells and not named:
        raise no_record(sweep)
    table = experiment_table(
        found.cells,
        asked,
        setup=setup,
        missing=found.missing,
        descriptions=None if found.lacking else shown(sweep.cells[0].around.metrics),
        commands=named or bool(found.lacking) or not found.cells,
    )
    records = [cell.record for cell in found.cells]
    report = write_report(sweep, [] if found.lacking else records, table=table)
    if not found.lacking:
        tell_outdated(sweep)
    tables = [table, *_claims(found, asked, setup=setup)]
    beside = []
    if named:
        beside = _beside_the_table(sweep, found, tables[1:], setup=setup or PaperSetup())
    written = [*report.files, *beside]
    sys.stderr.write("".join(f"{line}\n" for line in dict.fromkeys(found.lacking)))
    sys.stderr.write("".join(f"wrote {path}\n" for path in written))
    text = "\n".join(FORMATS[options.format](one) for one in tables)
    return Answer(text, [encode_record(record) for record in records])


def _find(sweep: Sweep) -> _Found:
    """A model or data set that is not here takes only its own cells away."""
    found = _Found()
    seen: dict[tuple[str, str], None] = {}
    for cell in sweep.cells:
        try:
            _ = cell.run_id  # which a cell without its model or data set has not
            record = cell.read_record()
        except UserError as error:
            found.lacking.append(f"{cell.names[0]}: {error}")
            record = None
        if record is None:
            found.missing.append(cell.names)
        elif (key := (record.run_id, record.method_label)) not in seen:
            seen[key] = None
            scores = cell.read_scores(record) if record.status == "ok" else {}
            found.cells.append(Scored(record=record, scores=scores))
    return found


def _claims(found: _Found, asked: Asked, *, setup: PaperSetup | None) -> list[Table]:
    if setup is None:
        return []
    table = claims_table(find_claims(found.cells, asked, setup=setup), title=asked.name)
    return [] if table is None else [table]


def _beside_the_table(
    sweep: Sweep, found: _Found, claims: Sequence[Table], *, setup: PaperSetup
) -> list[object]:
    folder = ReportFolder(sweep)
    text = kept_text(found.cells)
    folder.put(KEPT, functools.partial(write_text, text=text))
    for table in claims:
        for suffix, render in FORMATS.items():
            write = functools.partial(write_text, text=render(table))
            folder.put(f"claims.{suffix}", write)
    if setup.figure not in (None, CONTACT_SHEETS):
        assert setup.figure is not None
        _draw(folder, charts_of_cells(setup.figure, found.cells))
    return list(folder.files)


def _draw(folder: ReportFolder, charts: Sequence[Chart]) -> None:
    """The figures beside a table, where the library that draws is installed."""
    for chart in charts:
        try:
            folder.put(f"{chart[0]}.png", functools.partial(_chart, chart))
        except NoCharts as error:
            sys.stderr.write(f"no figure: {error}\n")
            return


def _chart(chart: Chart, path: Path) -> None:
    write_charts([chart], path.parent)


def _study(sweep: Sweep, setup: PaperSetup, asked: Asked, *, format_: str) -> Answer:
    study = study_of(setup)
    measured = study.measure(sweep)
    table = study.table(measured, asked=asked, setup=setup)
    folder = ReportFolder(sweep)
    folder.put("measured.csv", functools.partial(write_text, text=measured.text()))
    for suffix, render in FORMATS.items():
        folder.put(f"table.{suffix}", functools.partial(write_text, text=render(table)))
    if setup.figure is not None:
        _draw(folder, charts_of_measured(setup.figure, measured))
    sys.stderr.write("".join(f"wrote {path}\n" for path in folder.files))
    return Answer(FORMATS[format_](table), measured.rows)
