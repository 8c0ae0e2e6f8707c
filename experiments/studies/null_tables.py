"""How often does a table of equals name a winner, by its prompts alone?

    python -m experiments.studies.null_tables

Rows of one distribution: each has its own noise about what a prompt does to all of them. `compare`
and the table's own tests judge them as methods; whatever they say is false. Calibration draws are
the matter of `false_winners`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.distances import frechet_distance, image_values, kernel_distance
from evaluation.records import Metric, Record
from evaluation.report.comparison import Verdict, compare_rows
from evaluation.report.markdown import pipe_table
from evaluation.report.rows import DRAW, Scored
from evaluation.report.tables import make_table
from evaluation.statistics import Difference, holm, paired_difference
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text

NAME = "null_tables"  # of the file
COMMAND = f"python -m experiments.studies.{NAME}"
SIZES = (16, 128, 1024)
TABLES = 400
ROWS = 8  # methods of one bit-width, beside the baseline
DRAWS = 3
RESAMPLES = 1000
WIDTH = 32  # of features
OTHERS = 1024  # features of the data set

Array = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator, int, int], Array]  # rows x prompts


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Of tables, how many say something false."""

    what: str
    n: int
    tables: int
    false: int


def _errors(generator: np.random.Generator, rows: int, prompts: int) -> Array:
    """Like step errors: prompts differ twofold, rows by a tenth of that."""
    shared = generator.normal(0, 0.5, prompts)
    return np.exp(shared + generator.normal(0, 0.1, (rows, prompts)))


def _decibels(generator: np.random.Generator, rows: int, prompts: int) -> Array:
    return 40 + generator.normal(0, 3, prompts) + generator.normal(0, 1, (rows, prompts))


def _scores(generator: np.random.Generator, rows: int, prompts: int) -> Array:
    """Like CLIP scores: nearly all alike, a few prompts far off, each row's own."""
    far = generator.standard_t(3, (rows, prompts)) * 0.5
    return 94 + generator.normal(0, 2, prompts) + far


METRICS: dict[str, Draw] = {"psnr": _decibels, "clip": _scores}


def rows_of_equals(
    generator: np.random.Generator, *, prompts: int, draws: int, metrics: Mapping[str, Draw]
) -> list[Scored]:
    """`ROWS` methods and a baseline, as records with scores."""
    ids = [f"p{number}" for number in range(prompts)]
    found = []
    tables = {"step_error": [_errors(generator, ROWS + 1, prompts) for _ in range(draws)]}
    tables |= {
        name: [draw(generator, ROWS + 1, prompts) for _ in range(draws)]
        for name, draw in metrics.items()
    }
    for row in range(ROWS + 1):
        for draw in range(draws):
            values = {name: tables_[draw][row] for name, tables_ in tables.items()}
            found.append(_scored(f"m{row}", draw, ids=ids, values=values))
    return found


def _scored(name: str, draw: int, *, ids: Sequence[str], values: dict[str, Array]) -> Scored:
    better = {"step_error": False, "psnr": True, "clip": True}
    metrics = {
        {"clip": "clip_score"}.get(column, column): Metric(
            value=float(v.mean()),
            higher_is_better=better[column],
            n=len(ids),
            against="prompts" if column == "clip" else "reference",
        )
        for column, v in values.items()
    }
    record = Record(
        run_id=f"{name}{draw}", status="ok", model="m", method=name, bits="w8", dataset="d", seed=0,
        metrics=metrics, protocol={DRAW: str(draw), "calibration_prompts": 16},
    )  # fmt: skip
    scores = {column: dict(zip(ids, v.tolist(), strict=True)) for column, v in values.items()}
    return Scored(record=record, scores=scores)


def verdicts(*, n: int, tables: int) -> Rate:
    """`compare EXPERIMENT`: the step error of eight rows against a baseline's, Holm over them."""
    false = 0
    for number in range(tables):
        generator = np.random.default_rng([number, n])
        equals = rows_of_equals(generator, prompts=n, draws=1, metrics={})
        rows = compare_rows(equals, against="m0")
        false += any(row.verdict in (Verdict.better, Verdict.worse) for row in rows)
    return Rate(what="verdicts of compare, one draw", n=n, tables=tables, false=false)


def bold(*, n: int, tables: int) -> Rate:
    """The table: best of its bits in each of three columns, three calibration draws."""
    false = 0
    for number in range(tables):
        generator = np.random.default_rng([number, n, 1])
        table = make_table(rows_of_equals(generator, prompts=n, draws=DRAWS, metrics=METRICS))
        false += any(cell.bold for row in table.rows for cell in row.cells)
    return Rate(what=f"bold cells of a table, {DRAWS} draws", n=n, tables=tables, false=false)


def two_folders(*, n: int, tables: int) -> Rate:
    """`compare A B --noise`: paired differences of several metrics, Holm over them."""
    false = 0
    for number in range(tables):
        generator = np.random.default_rng([number, n, 2])
        found = {name: _one(draw(generator, 2, n), number) for name, draw in METRICS.items()}
        found["light"] = _one(generator.lognormal(0, 0.2, (2, n)), number)
        judged = holm({name: one.p_value for name, one in found.items()})
        false += any(result.rejected for result in judged.values())
    return Rate(what="verdicts of compare A B, 3 metrics", n=n, tables=tables, false=false)


def _one(rows_2N: Array, seed: int) -> Difference:
    return paired_difference(rows_2N[0], rows_2N[1], seed=seed, resamples=RESAMPLES)


def distances(kind: str, *, n: int, tables: int) -> Rate:
    """Two rows' distances to a data set, paired by each image's influence: p <= 0.05 is false."""
    false = 0
    others = np.random.default_rng(7).normal(0, 1, (OTHERS, WIDTH))
    for number in range(tables):
        generator = np.random.default_rng([number, n, 3])
        shared = generator.normal(0.3, 0.9, (n, WIDTH))
        a, b = (
            image_values(_distance(kind, shared + generator.normal(0, 0.4, shared.shape), others),
                         paired=False)
            for _ in range(2)
        )  # fmt: skip
        false += paired_difference(a, b, seed=number, resamples=RESAMPLES).p_value <= 0.05
    said = {"fid": "FID", "kid": "KID"}[kind]
    return Rate(what=f"difference of two {said}, no Holm", n=n, tables=tables, false=false)


def _distance(kind: str, a: Array, b: Array) -> Any:
    return frechet_distance(a, b) if kind == "fid" else kernel_distance(a, b)


def rates(*, tables: int, sizes: Sequence[int] = SIZES) -> list[Rate]:
    return [
        *(verdicts(n=n, tables=tables) for n in sizes),
        *(bold(n=n, tables=tables // 2) for n in sizes[:2]),
        *(two_folders(n=n, tables=tables) for n in sizes),
        *(distances(kind, n=n, tables=tables) for kind in ("fid", "kid") for n in sizes),
    ]


def report(found: Sequence[Rate]) -> str:
    body = [
        [one.what, str(one.n), str(one.tables), f"{100 * one.false / one.tables:.1f} %"]
        for one in found
    ]
    head = ["what", "n", "tables", "say something false"]
    return "\n".join(
        [
            f"How often does a table of equals name a winner, by its prompts alone? `{COMMAND}`.",
            "",
            f"{ROWS} rows and a baseline of one distribution, told apart by the code that judges "
            "all rows; at most 5 % is what a table promises. CLIP-like scores have Student's "
            "tails of 3 degrees. Calibration draws: [false_winners](false_winners.md).",
            "",
            pipe_table(head, body, numeric=[False, True, True, True]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog=COMMAND)
    parser.add_argument("--tables", type=int, default=TABLES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = rates(tables=options.tables)
    write_text(options.out / f"{NAME}.md", report(found))
    body: list[list[str | float]] = [[one.what, one.n, one.tables, one.false] for one in found]
    write_text(options.out / f"{NAME}.csv", csv_text(["what", "n", "tables", "false"], body))


if __name__ == "__main__":
    main()
