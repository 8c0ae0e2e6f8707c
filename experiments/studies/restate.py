"""Takes out of committed tables what their cells do not allow to say.

    python -m experiments.studies.restate baselines baselines_why released_rows mx_scales peers

Their numbers stand, but marks and bold were decided by single intervals, where a paired difference
decides now, and their scores image by image are not kept here. Marks and bold go; a verdict of
`compare`, which was paired already, says that it is of one calibration draw. Running an experiment
again and publishing it brings marks back.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from pathlib import Path

from experiments.errors import UserError
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS

_ENDS = (": ~", ": ↓fp")  # of a note that is a mark
_OF_ONE_DRAW = " (1 calibration draw)"
_VERDICT = re.compile(r"(?<=[ ,])(\*\*)?(better|worse)(?=\*\*|,| *\|| \(\d+\))")
_COMMAS = 9  # more of them make a row of CSV
_SAID = (
    "- No marks and nothing bold: what paired differences over calibration draws allow to say "
    "needs the experiment's records (`python -m experiments.studies.restate`)."
)


def without_marks(markdown: str) -> str:
    """A table's Markdown with its numbers alone."""
    lines = []
    for line in markdown.splitlines():
        if line.startswith("|"):
            line = "|".join(_bare(cell) for cell in line.split("|"))
        elif line.startswith(("- ~ ", "- ↓fp ", "- Bold: ")) or line == _SAID:
            continue
        lines.append(line)
    legend = max((i for i, line in enumerate(lines) if line.startswith("|")), default=0) + 2
    return "\n".join([*lines[:legend], _SAID, *lines[legend:]]) + "\n"


def _bare(cell: str) -> str:
    """As wide as before."""
    return re.sub(r" (~|↓fp)(?= |$)", "", cell.replace("**", "")).rjust(len(cell))


def csv_without_marks(text: str) -> str:
    """The same of a table's CSV, whose last column holds marks and notes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head, *rows = csv.reader(io.StringIO(text))
    writer.writerow(head)
    for *cells, notes in rows:
        kept = [part for part in notes.split("; ") if not part.endswith(_ENDS)]
        writer.writerow([*cells, "; ".join(kept)])
    return buffer.getvalue()


def of_one_draw(text: str) -> str:
    """A comparison's Markdown or CSV whose verdicts say what they are of."""
    lines = []
    for line in text.splitlines():
        if line.startswith("|") or line.count(",") > _COMMAS:
            line = _VERDICT.sub(rf"\1\2{_OF_ONE_DRAW}", line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def restate(name: str) -> list[Path]:
    """Rewrites the files of a committed result.

    Raises:
        UserError: there is no such result.
    """
    folder = RESULTS / name
    if not (folder / "table.md").is_file():
        raise UserError(f"{folder} holds no table.md")
    changes = {"table.md": without_marks, "table.csv": csv_without_marks}
    changes |= {f"compare_rtn.{suffix}": of_one_draw for suffix in ("md", "csv")}
    written = []
    for file, change in changes.items():
        path = folder / file
        if path.is_file():
            write_text(path, change(path.read_text(encoding="utf-8")))
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.restate")
    parser.add_argument("names", nargs="+")
    for name in parser.parse_args().names:
        try:
            restate(name)
        except UserError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
