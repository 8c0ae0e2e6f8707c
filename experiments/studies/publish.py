"""Copies a finished sweep's report into the repository.

`python -m experiments.studies.publish demo`.

The table and the contact sheets, not the page of `segbench report`, go to
`experiments/results/NAME/`; what the README shows of the demo between its markers is replaced by
the table as the command made it. No figure is typed.
`publish compare` does the same with the page that `segbench compare A B --out
experiments/results/compare` left there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from evaluation.report.page_html import PAGE
from experiments.errors import UserError
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS, ROOT

SHEETS = "contact_sheet_*.png"
MOST_SHEET_BYTES = 2_000_000  # of all of a report's; those of a long sweep stay with its records
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"
COMPARE_BEGIN, COMPARE_END = "<!-- compare: begin -->", "<!-- compare: end -->"
COMPARE_PAGE = RESULTS / "compare" / "comparison.md"


def readme_with(readme: str, table: str) -> str:
    """The README with the text between its markers replaced by the table, without its legend."""
    return _between(readme, short(table), begin=BEGIN, end=END)


def readme_with_page(readme: str, page: str) -> str:
    """The same with the verdict and the table of a page of two folders."""
    verdict, *rest = page.splitlines()
    rows = [line for line in rest if line.startswith("|")]
    text = "\n".join([verdict, "", *rows])
    return _between(readme, text, begin=COMPARE_BEGIN, end=COMPARE_END)


def _between(readme: str, text: str, *, begin: str, end: str) -> str:
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{text}\n{end}{after}"


def short(table: str) -> str:
    """Caption, rows and numbered notes of a Markdown table; the legend stays in the file."""
    lines = table.strip().splitlines()
    head = [line for line in lines if not line.startswith("- ")]
    return "\n".join(head).strip()


def publish(name: str, *, out: Path) -> list[Path]:
    """Copies the report and, for the demo, refreshes the README.

    Raises:
        UserError: there is no report of that name.
    """
    readme = ROOT / "README.md"
    if name == COMPARE_PAGE.parent.name:
        if not COMPARE_PAGE.is_file():
            raise UserError(f"{COMPARE_PAGE} is not there; segbench compare A B --out makes it")
        write_text(readme, readme_with_page(readme.read_text(), COMPARE_PAGE.read_text()))
        return [readme]
    source = out / "reports" / name
    if not (source / "table.md").is_file():
        raise UserError(f"{source} holds no table.md; run segbench run +experiment={name} first")
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    written = []
    sheets = sum(path.stat().st_size for path in source.glob(SHEETS))
    for path in sorted(source.iterdir()):
        if path.name == PAGE or (sheets > MOST_SHEET_BYTES and path.match(SHEETS)):
            continue
        shutil.copyfile(path, target / path.name)
        written.append(target / path.name)
    if name == "demo":
        write_text(readme, readme_with(readme.read_text(), (target / "table.md").read_text()))
        written.append(readme)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.publish")
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    try:
        publish(arguments.name, out=arguments.out)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
