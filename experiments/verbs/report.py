"""`segbench report`: one HTML page of a sweep, and its figures for a paper, from its records."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.report.chart_files import NoCharts, chart_javascript
from evaluation.report.page_html import PAGE, render_page
from experiments.errors import UserError
from experiments.pages.paper_figures import write_figures
from experiments.pages.sweep_page import page_of
from experiments.store.entries import clear_way
from experiments.store.folders import write_text
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import ReportFolder, table_of, tell_outdated
from experiments.verbs.words import add_recorded, check_writable, no_record, recorded_sweep

if TYPE_CHECKING:
    from experiments.cell.sweep import Sweep

_PROMPTS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recorded(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"default: out/reports/NAME/{PAGE}"
    )
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", help="the charts as PNG and PDF as well"
    )
    parser.add_argument(
        "--prompts", type=int, default=_PROMPTS, metavar="N", help="whose images are shown; 0: none"
    )


def run(options: argparse.Namespace) -> Answer:
    """Looks at records and the store alone: nothing is measured or made.

    Raises:
        UserError: no record, an option that says nothing, or what draws is not installed.
    """
    if options.prompts < 0:
        raise UserError(f"--prompts {options.prompts}; give 0 (no images) or more")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"--out {options.out}: a folder; give the file, such as {PAGE}")
    try:
        script = chart_javascript()
    except NoCharts as error:
        raise UserError(str(error)) from error
    sweep = recorded_sweep(options)
    records = sweep.records()
    if not records:
        raise no_record(sweep)
    check_writable(options.figures)
    check_writable(None if options.out is None else options.out.parent)
    table = table_of(sweep, records)
    words = [options.experiment, *options.overrides]
    page = page_of(sweep, table, words=words, prompts=options.prompts)
    text = render_page(page, chart_script=script)
    path = _write(sweep, text, options.out)
    tell_outdated(sweep, records)
    figures = [] if options.figures is None else write_figures(page, options.figures)
    sys.stderr.write("".join(f"wrote {one}\n" for one in figures))
    data = {
        "page": str(path),
        "bytes": len(text.encode()),
        "rows": len(table.rows),
        "figures": [str(one) for one in figures],
        "left_out": list(page.left_out),
    }
    return Answer(str(path), data)


def _write(sweep: Sweep, text: str, out: Path | None) -> Path:
    """Whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    if out is not None:
        try:
            clear_way(out)
            write_text(out, text)
        except OSError as error:
            raise UserError(
                f"--out {out}: cannot be written ({error.strerror or error})"
            ) from error
        return out
    folder = ReportFolder(sweep)
    folder.put(PAGE, lambda path: write_text(path, text))
    if folder.refused:
        raise UserError(f"{sweep.folder} cannot be written; give --out FILE")
    return folder.files[0]
