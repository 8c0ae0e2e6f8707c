"""How often does a table name a winner between a method and itself?

    python -m experiments.studies.false_winners

A method is run with ten calibration draws, which are dealt to two arms as if they were two methods;
`compare` and the table then judge the arms by the same code as any rows. An arm that is better or
worse is a false winner. With one draw an arm the verdict is on that draw, and says so; from three
on it claims to hold for another draw, and should fail in one table of twenty.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.report.comparison import Verdict, compare_rows
from evaluation.report.markdown import pipe_table
from evaluation.report.rows import DRAW, Scored
from evaluation.report.tables import make_table
from experiments.cell.run_cell import run_cell
from experiments.cell.sweep import Sweep, open_sweep
from experiments.config.request import read_request
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS

NAME = "false_winners"  # of the file
COMMAND = f"python -m experiments.studies.{NAME}"
MODELS = ("tiny_mmdit", "tiny_flux", "tiny_unet")
METHODS = ("rtn", "smooth_search")
BITS = ("w8a8_int8", "w4a8_int_tensor")
DRAWS = 10
PER_ARM = (1, 2, 3, 5)
MOST_TABLES = 200  # of one number of draws an arm; more splits are drawn from
SMALL = (
    "dataset.evaluation_prompts=16",
    "dataset.calibration_prompts=16",
    "metrics.teacher_forced_prompts=16",
    "metrics.bootstrap_resamples=1000",
    "logger=none",
    "num_threads=1",
)


Split = tuple[tuple[int, ...], tuple[int, ...]]  # the draws of each arm


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of the tables of one row and one number of draws an arm, how many say what."""

    tables: int
    judged: int  # better or worse, by the step error
    bold: int  # tables with a bold cell


def splits(count: int, *, per_arm: int, most: int = MOST_TABLES) -> list[Split]:
    """Ways to deal some of `count` draws to two arms; a fixed choice where there are too many."""

    draws = range(count)
    found: list[Split] = [
        (first, second)
        for first in itertools.combinations(draws, per_arm)
        for second in itertools.combinations([d for d in draws if d not in first], per_arm)
        if first < second
    ]
    return random.Random(0).sample(found, most) if len(found) > most else found


def false_winners(cells: Sequence[Scored], *, per_arm: int, most: int = MOST_TABLES) -> Rate:
    """Judges every split of the draws of one row."""
    tables = splits(len(cells), per_arm=per_arm, most=most)
    judged = bold = 0
    for split in tables:
        rows = [
            _as_arm(cells[draw], arm=arm, place=place)
            for arm, draws in zip("ab", split, strict=True)
            for place, draw in enumerate(draws)
        ]
        (compared,) = compare_rows(rows, against="a")
        judged += compared.verdict in (Verdict.better, Verdict.worse)
        bold += any(cell.bold for row in make_table(rows).rows for cell in row.cells)
    return Rate(tables=len(tables), judged=judged, bold=bold)


def _as_arm(cell: Scored, *, arm: str, place: int) -> Scored:
    """The same scores under the name of an arm; draws are paired in the order they are dealt."""
    protocol = {**cell.record.protocol, DRAW: str(place)}
    record = replace(cell.record, method=arm, settings={}, protocol=protocol)
    return Scored(record=record, scores=cell.scores)


def run(*, models: Sequence[str], methods: Sequence[str], out: Path) -> Sweep:
    seeds = ",".join(map(str, range(1, DRAWS + 1)))
    words = [
        f"model={','.join(models)}", f"method={','.join(methods)}", f"bits={','.join(BITS)}",
        f"dataset.calibration_seed={seeds}", *SMALL, f"out={out}", f"group={NAME}",
    ]  # fmt: skip
    sweep = open_sweep(read_request(words, multirun=True))
    sweep.check()
    for group in sweep.groups():
        for cell in group:
            if cell.record() is None:
                run_cell(cell)
        group[0].around.release()
    return sweep


def by_row(sweep: Sweep) -> dict[tuple[str, str, str], list[Scored]]:
    """The cells of each model, method and bits, in the order of their draws."""
    rows: dict[tuple[str, str, str], list[Scored]] = {}
    for cell in sweep.cells:
        record = cell.record()
        if record is None or record.status != "ok":
            raise ValueError(
                f"{cell.label} is not done: {record.reason if record else 'no record'}"
            )
        rows.setdefault(cell.names, []).append(
            Scored(record=record, scores=cell.read_scores(record))
        )
    return rows


def report(rows: dict[tuple[str, str, str], list[Scored]]) -> str:
    head = ["model", "method", "bits", "draws an arm", "tables", "better or worse", "bold"]
    body, totals = [], {count: Rate(tables=0, judged=0, bold=0) for count in PER_ARM}
    for names, cells in rows.items():
        for count in PER_ARM:
            rate = false_winners(cells, per_arm=count)
            known = totals[count]
            totals[count] = Rate(
                tables=known.tables + rate.tables,
                judged=known.judged + rate.judged,
                bold=known.bold + rate.bold,
            )
            body.append([*names, str(count), *_shares(rate)])
    body += [["all", "", "", str(count), *_shares(rate)] for count, rate in totals.items()]
    return "\n".join(
        [
            f"How often a table names a winner between a method and itself: `{COMMAND}`.",
            "",
            f"{DRAWS} calibration draws of a row are dealt to two arms, which `compare` and the "
            "table judge as two methods. 16 evaluation and 16 calibration prompts. With fewer than "
            "three draws an arm nothing is bold, and a verdict carries the number of draws in its "
            "words: it is of these draws alone.",
            "",
            pipe_table(head, body, numeric=[False] * 3 + [True] * 4),
            "",
        ]
    )


def _shares(rate: Rate) -> list[str]:
    return [str(rate.tables), *(f"{100 * n / rate.tables:.1f} %" for n in (rate.judged, rate.bold))]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, prog=COMMAND)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--store", type=Path, default=Path("runs"), help="default: runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sweep = run(models=options.models, methods=options.methods, out=options.store)
    write_text(options.out / f"{NAME}.md", report(by_row(sweep)))


if __name__ == "__main__":
    main()
