"""Does the cheap metric rank recipes as the image metrics do?

    python -m experiments.studies.rank_agreement

Kendall's tau between the step error and each image metric over the methods of one model at one
bit-width, of a committed sweep; no image is made. And what is lost if the step error chooses.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from evaluation.report.markdown import pipe_table
from evaluation.statistics import Estimate, mean_over_runs
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text

NAME = "rank_agreement"  # of the file
COMMAND = f"python -m experiments.studies.{NAME}"
CHEAP = "step_error"
HIGHER = ("psnr", "ssim", "clip_score")
METRICS = (
    *("psnr", "ssim", "fid_shapes_reference", "fid_shapes_dataset", "kid_shapes_dataset"),
    "clip_score",
)
BITS = "effective_bits_per_weight"
MOST_BITS = 1.1  # times the setting's median: a row of more leads by its size
FEWEST = 5  # rows of a setting below which ranks say little
_RANDOM = 200  # choices by chance

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one setting and metric.

    `place` is where the step error's choice stands by the metric, 0 the best and 1 the worst;
    `found` says whether the metric's best is among the step error's first three.
    """

    model: str
    bits: str
    metric: str
    rows: int
    tau: float
    place: float
    found: bool


def settings(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """The finished rows of methods by model and bits, without those that need far more bits."""
    done = [row for row in rows if row["kind"] == "method" and row["status"] == "ok"]
    for model, bits in dict.fromkeys((row["model"], row["bits"]) for row in done):
        group = [row for row in done if (row["model"], row["bits"]) == (model, bits)]
        most = MOST_BITS * float(np.median([float(row[BITS]) for row in group]))
        group = [row for row in group if float(row[BITS]) <= most]
        if len(group) >= FEWEST:
            yield model, bits, group


def agreements(rows: Sequence[Row], *, cheap: str = CHEAP) -> list[Agreement]:
    found = []
    for model, bits, group in settings(rows):
        for metric in METRICS:
            known = [row for row in group if row.get(metric) and row.get(cheap)]
            if metric == cheap or len(known) < FEWEST:
                continue
            a, b = (_worse(known, name) for name in (cheap, metric))
            first = int(np.argmin(a))
            found.append(
                Agreement(
                    model=model,
                    bits=bits,
                    metric=metric,
                    rows=len(known),
                    tau=float(kendalltau(a, b).statistic),
                    place=_place(b, first),
                    found=int(np.argmin(b)) in np.argsort(a)[:3],
                )
            )
    return found


def _worse(rows: Sequence[Row], name: str) -> np.ndarray:
    """The metric's values, the larger the worse."""
    values = np.array([float(row[name]) for row in rows])
    return -values if name in HIGHER else values


def _place(values: np.ndarray, index: int) -> float:
    """From 0, the lowest of them, to 1; equal ones share theirs."""
    below, equal = (values < values[index]).sum(), (values == values[index]).sum() - 1
    return float(below + equal / 2) / (len(values) - 1)


def over_settings(found: Sequence[Agreement]) -> Estimate:
    """Mean tau, with Student's interval over bit-widths: of one, models are no independent rows."""
    by_bits: dict[str, list[float]] = {}
    for one in found:
        if np.isfinite(one.tau):
            by_bits.setdefault(one.bits, []).append(one.tau)
    return mean_over_runs([float(np.mean(values)) for values in by_bits.values()])


def report(rows: Sequence[Row]) -> str:
    models = list(dict.fromkeys(one.model for one in agreements(rows)))
    body = [_line(rows, cheap=CHEAP, metric=metric, models=models) for metric in METRICS]
    body.append(_line(rows, cheap="ssim", metric="psnr", models=models))
    body.append(_line(rows, cheap="clip_score", metric="psnr", models=models))
    head = [
        "ranked by",
        "against",
        "settings",
        "tau [95 %]",
        *models,
        "its choice",
        "best in three",
    ]
    return "\n".join(
        [
            f"Does the cheap metric rank recipes as the image metrics do? `{COMMAND}`, over "
            "[baselines](baselines/table.md).",
            "",
            "Kendall's tau over the methods of one model at one bit-width (but for those with more "
            "than a tenth more bits a weight than the median), mean over settings; the interval is "
            "Student's over bit-widths. Step errors are of 8 prompts, image metrics of 16 images, "
            "the same prompts among them: what their own noise costs is in every tau, and two "
            "image metrics of the same images (`ssim` against `psnr`) show what is to be had. "
            "`its choice`: where the method that the first metric ranks best stands by the second "
            "(0 the best, 1 the worst; by chance 0.5). `best in three`: how often the second's "
            "best is among the first's best three.",
            "",
            pipe_table(head, body, numeric=[False, False, *[True] * (len(head) - 2)]),
            "",
            *_said(rows),
            "",
        ]
    )


def _line(rows: Sequence[Row], *, cheap: str, metric: str, models: Sequence[str]) -> list[str]:
    found = [one for one in agreements(rows, cheap=cheap) if one.metric == metric]
    tau = over_settings(found)
    by_model = [
        f"{np.nanmean([one.tau for one in found if one.model == model]):.2f}" for model in models
    ]
    return [
        cheap,
        metric,
        str(len(found)),
        f"{tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]",
        *by_model,
        f"{np.mean([one.place for one in found]):.2f}",
        f"{100 * np.mean([one.found for one in found]):.0f} %",
    ]


def _said(rows: Sequence[Row]) -> list[str]:
    """What is lost in decibels when the step error chooses."""
    lost, chance = losses(rows)
    return [
        f"The method that the step error ranks best has {np.mean(lost):.2f} dB less PSNR than the "
        f"setting's best by PSNR (median {np.median(lost):.2f}, at most {np.max(lost):.1f}); one "
        f"that is drawn by chance {np.mean(chance):.1f} dB less. It is PSNR's own best in "
        f"{sum(value == 0 for value in lost)} of {len(lost)} settings.",
    ]


def losses(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Decibels below the best of each setting: of the step error's choice, and of chance's."""
    generator = random.Random(0)
    lost, chance = [], []
    for _, _, group in settings(rows):
        known = [row for row in group if row["psnr"] and row[CHEAP]]
        psnr = [float(row["psnr"]) for row in known]
        first = int(np.argmin([float(row[CHEAP]) for row in known]))
        lost.append(max(psnr) - psnr[first])
        drawn = [generator.choice(psnr) for _ in range(_RANDOM)]
        chance.append(max(psnr) - float(np.mean(drawn)))
    return lost, chance


def table(rows: Sequence[Row]) -> str:
    """Every setting and metric, as CSV."""
    found = agreements(rows)
    return csv_text(
        ["model", "bits", "metric", "rows", "tau", "place", "best_in_three"],
        [
            [one.model, one.bits, one.metric, one.rows, f"{one.tau:.4f}", f"{one.place:.4f}",
             int(one.found)]
            for one in found
        ],
    )  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog=COMMAND)
    parser.add_argument("--table", type=Path, default=RESULTS / "baselines" / "table.csv")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = read(options.table)
    write_text(options.out / f"{NAME}.md", report(rows))
    write_text(options.out / f"{NAME}.csv", table(rows))


if __name__ == "__main__":
    main()
