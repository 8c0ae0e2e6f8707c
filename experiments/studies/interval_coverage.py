"""How often do 95 % intervals of a mean cover it?

    python -m experiments.studies.interval_coverage

Samples of known distributions, some like the scores that are measured here: step errors are near
lognormal, CLIP differences nearly all small with a few large.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from evaluation.report.markdown import pipe_table
from evaluation.statistics import mean_estimate
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS

NAME = "interval_coverage"  # of the file
COMMAND = f"python -m experiments.studies.{NAME}"
SIZES = (8, 16, 64, 128, 1024)
HEADLINE_SIZES = (16, 128, 1024)
HEADLINE = ("normal", "lognormal, sigma 0.2", "Student's t, 3 degrees")  # as most scores are
TRIALS = 2000
RESAMPLES = 1000

Array = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator, int], Array]


def _rarely_large(generator: np.random.Generator, count: int) -> Array:
    large = generator.random(count) < 0.03
    return np.where(large, -generator.exponential(20, count), generator.normal(0, 0.5, count))


DISTRIBUTIONS: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda g, n: g.normal(size=n), 0.0),
    "lognormal, sigma 0.2": (lambda g, n: g.lognormal(0, 0.2, n), math.exp(0.02)),
    "lognormal, sigma 1": (lambda g, n: g.lognormal(0, 1.0, n), math.exp(0.5)),
    "Student's t, 3 degrees": (lambda g, n: g.standard_t(3, n), 0.0),
    "small, 3 % of them large": (_rarely_large, -0.6),
}


def percentile(values_N: Array, *, seed: int) -> tuple[float, float]:
    """What most papers that print an interval use."""
    found = bootstrap(
        (values_N,), np.mean, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def student(values_N: Array, *, seed: int) -> tuple[float, float]:
    estimate = mean_estimate(values_N, seed=seed, resamples=0)
    return estimate.low, estimate.high


def ours(values_N: Array, *, seed: int) -> tuple[float, float]:
    estimate = mean_estimate(values_N, seed=seed, resamples=RESAMPLES)
    return estimate.low, estimate.high


INTERVALS = {"percentile bootstrap": percentile, "Student": student, "used here": ours}


def coverage(draw: Draw, mean: float, *, n: int, trials: int = TRIALS) -> dict[str, float]:
    """The share of samples whose interval holds the mean, by interval."""
    generator = np.random.default_rng(0)
    inside = dict.fromkeys(INTERVALS, 0)
    for trial in range(trials):
        values_N = draw(generator, n)
        for name, interval in INTERVALS.items():
            low, high = interval(values_N, seed=trial)
            inside[name] += low <= mean <= high
    return {name: count / trials for name, count in inside.items()}


def report(*, trials: int) -> str:
    body, used = [], {}
    for name, (draw, mean) in DISTRIBUTIONS.items():
        for n in SIZES:
            found = coverage(draw, mean, n=n, trials=trials)
            used[name, n] = found["used here"]
            body.append([name, str(n), *(f"{100 * share:.1f} %" for share in found.values())])
    return "\n".join(
        [
            f"How often a 95 % interval of a mean covers it: `{COMMAND}`.",
            "",
            f"{trials} samples a line (a share of 95 % is known to ± {_known(trials):.1f}), "
            f"{RESAMPLES} resamples. What is used is on each side the wider of Student's t and the "
            "studentized bootstrap. Where a few large values decide the mean and a sample may hold "
            "none of them, no interval covers: differences come with their median and a sign test "
            "for that reason.",
            "",
            *(f"{_said(n, used)}" for n in HEADLINE_SIZES),
            "",
            pipe_table(["distribution", "n", *INTERVALS], body, numeric=[False, *[True] * 4]),
            "",
        ]
    )


def _known(trials: int) -> float:
    """Half of the 95 % interval of a share of 95 %, in %."""
    return 100 * 1.96 * (0.95 * 0.05 / trials) ** 0.5


def _said(n: int, used: Mapping[tuple[str, int], float]) -> str:
    """A line of what the headline intervals do."""
    light = [100 * used[name, n] for name in HEADLINE]
    skewed = 100 * used["lognormal, sigma 1", n]
    rare = 100 * used["small, 3 % of them large", n]
    return (
        f"- n = {n}: {min(light):.1f} to {max(light):.1f} % of what most scores are like (normal, "
        f"lognormal 0.2, t of 3 degrees); {skewed:.1f} % where they are skewed (lognormal 1); "
        f"{rare:.1f} % where a few decide."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog=COMMAND)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    write_text(options.out / f"{NAME}.md", report(trials=options.trials))


if __name__ == "__main__":
    main()
