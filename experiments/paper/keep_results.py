"""Keeps what a finished experiment's tables are made from in the repository, and the tables.

`python -m experiments.paper.keep_results tiny_paper_main --out runs`, after `segbench table`. The
tables are made from what is kept, not copied, so that a test can make them again and see that they
are what it says. What `segbench compare` left beside them is copied: layers' errors are not kept.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from evaluation.report.chart_files import stamped_png
from evaluation.report.render import to_csv, to_markdown
from evaluation.report.tables import Table
from experiments.config.request import read_request
from experiments.errors import UserError
from experiments.paper.claims import claims_table, find_claims
from experiments.paper.joined_table import Asked, experiment_table
from experiments.paper.kept_cells import KEPT, missing_of, read_kept
from experiments.paper.paper_charts import (
    CONTACT_SHEETS,
    Chart,
    charts_of_cells,
    charts_of_measured,
    write_charts,
)
from experiments.paper.paper_setup import PaperSetup, paper_setup
from experiments.paper.studies_of_stages import MEASURED, read_measured, study_of
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS

KEPT_RESULTS = RESULTS / "paper"


def tables_of(name: str, folder: Path) -> dict[str, Table]:
    """The tables of an experiment by the names of their files, from what a folder keeps.

    Raises:
        UserError: the folder keeps nothing of the kind.
    """
    request = read_request([f"+experiment={name}"], multirun=True)
    asked = Asked(name=name, words=(), configs=request.cells)
    setup = paper_setup(name)
    if setup is not None and setup.study is not None:
        measured = read_measured(folder / MEASURED)
        return {"table": study_of(setup).table(measured, asked=asked, setup=setup)}
    cells = read_kept(folder / KEPT)
    missing = missing_of(cells, asked.configs)
    tables = {"table": experiment_table(cells, asked, setup=setup, missing=missing)}
    claims = claims_table(find_claims(cells, asked, setup=setup or PaperSetup()), title=name)
    return tables if claims is None else {**tables, "claims": claims}


def charts_of(name: str, folder: Path) -> list[Chart]:
    """The charts that an experiment's yaml asks for, from what a folder keeps."""
    setup = paper_setup(name)
    if setup is None or setup.figure in (None, CONTACT_SHEETS):
        return []
    assert setup.figure is not None
    if setup.study is not None:
        return charts_of_measured(setup.figure, read_measured(folder / MEASURED))
    return charts_of_cells(setup.figure, read_kept(folder / KEPT))


def rendered(name: str, folder: Path) -> dict[str, str]:
    """The files that a folder of results has beside what it keeps."""
    return {
        f"{file}.{suffix}": render(table)
        for file, table in tables_of(name, folder).items()
        for suffix, render in (("md", to_markdown), ("csv", to_csv))
    }


def keep(name: str, *, out: Path) -> list[Path]:
    """Copies what `segbench table` left below `out`, and makes the tables of it.

    Raises:
        UserError: there is none.
    """
    source, target = out / "reports" / name, KEPT_RESULTS / name
    found = [source / file for file in (KEPT, MEASURED) if (source / file).is_file()]
    if not found:
        raise UserError(f"{source} holds no {KEPT} or {MEASURED}; run segbench table {name} first")
    target.mkdir(parents=True, exist_ok=True)
    written = [target / path.name for path in found]
    for path in found:
        write_text(target / path.name, path.read_text(encoding="utf-8"))
    for file, text in rendered(name, target).items():
        write_text(target / file, text)
        written.append(target / file)
    for compared in [*sorted(source.glob("compare_*.md")), *sorted(source.glob("compare_*.csv"))]:
        write_text(target / compared.name, compared.read_text(encoding="utf-8"))
        written.append(target / compared.name)
    for sheet in sorted(source.glob("contact_sheet_*.png")) if _is_qualitative(name) else []:
        stamp = kept_stamp(target / KEPT)
        (target / sheet.name).write_bytes(stamped_png(sheet.read_bytes(), stamp))
        written.append(target / sheet.name)
    return written + write_charts(charts_of(name, target), target)


def _is_qualitative(name: str) -> bool:
    setup = paper_setup(name)
    return setup is not None and setup.figure == CONTACT_SHEETS


def kept_stamp(path: Path) -> str:
    """What a contact sheet was made beside: its cells, as they are kept."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.paper.keep_results")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    given = parser.parse_args()
    try:
        for name in given.names:
            keep(name, out=given.out)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
