"""Uncertainty of means and differences over prompts and calibration draws; Holm's correction.

Every method sees the same prompts and the same noise, so that two rows are compared prompt by
prompt. Calibration prompts are drawn too: rows of several draws are a table of draws x prompts, and
both count as random, since another user has other prompts and another calibration set.

Shapes: N prompts, C calibration draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, betaincinv, stdtr, stdtrit

from evaluation.records import Metric

RESAMPLES = 10_000
CONFIDENCE = 0.95
INTERVAL95 = "mean95"
EXACT95 = "exact95"
FEWEST_RESAMPLED = 8  # values below which a bootstrap says less than Student's t
_CHUNK = 500  # resamples drawn at once: bounds the memory of the index matrix
_TAIL = (1 - CONFIDENCE) / 2
_LEAST_TAIL = 1e-12  # no smaller p-value is looked for
_HALVINGS = 50  # of the interval of its logarithm: to the last digits

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(kw_only=True)
class Estimate:
    """A mean with its 95 % interval; `n` is the number of prompts."""

    value: float
    low: float
    high: float
    standard_error: float
    n: int


@dataclass(kw_only=True)
class Difference(Estimate):
    """Mean of a minus b, paired; `p_value` is two-sided and fits the interval.

    `median` and `sign_p_value` (of the sign test) are what heavy tails leave standing: a mean of
    which a few prompts decide has no interval that can be relied on.
    """

    p_value: float
    median: float
    sign_p_value: float


@dataclass(kw_only=True)
class HolmResult:
    p_value: float
    adjusted: float
    rejected: bool


def mean_estimate(values: Any, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean over prompts with a 95 % interval: on each side the wider of two.

    Student's t, which is right for few values and light tails, and the bootstrap of the studentized
    mean, which follows a skewed distribution. Below `FEWEST_RESAMPLED` values Student's alone. How
    often each covers is in `experiments/results/interval_coverage.md`.

    Where a value is infinite the mean is, and nothing is known of it unless all are.

    Source: Efron and Tibshirani 1993, section 12.5 (bootstrap-t).
    """
    values_N = _as_vector(values)
    return _judge(values_N[None], seed=seed, resamples=resamples)[0]


def mean_over_runs(values: Any) -> Estimate:
    """Mean of a few independent runs, with Student's 95 % interval.

    Raises:
        ValueError: fewer than two runs.
    """
    values_N = _as_vector(values)
    if len(values_N) < 2:
        raise ValueError(f"{len(values_N)} run; an interval needs two or more")
    return _judge(values_N[None], seed=0, resamples=0)[0]


def crossed_mean(values_CN: Any) -> Estimate:
    """Mean of a table of draws x prompts, both of which are random, with Student's 95 % interval.

    The variance of the mean is that of draws over C, of prompts over N and of their interaction
    over CN, by the mean squares of the two-way layout. The parts of draws and of prompts have each
    their own Student's t in the interval, so that three draws are no more than three: pooled
    degrees of freedom after Satterthwaite find too much whenever the draws happen to lie close.
    One draw: Student's interval over its prompts.

    Source: Searle, Casella and McCulloch 1992, section 4.5; Howe 1974 (J. Am. Stat. Assoc. 69),
    for the sum of squared half-widths.
    """
    return _judge(_as_table(values_CN), seed=0, resamples=0)[0]


def share_metric(count: int, *, n: int, against: str, note: str) -> Metric:
    """A share of images, where lower is better, with the exact interval of Clopper and Pearson."""
    share = count / n
    low = float(betaincinv(count, n - count + 1, _TAIL)) if count else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - _TAIL)) if count < n else 1.0
    return Metric(
        value=share,
        higher_is_better=False,
        n=n,
        against=against,
        standard_error=(share * (1 - share) / n) ** 0.5,
        interval=[low, high],
        interval_kind=EXACT95,
        note=note,
    )


def paired_difference(a: Any, b: Any, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Mean of a - b over the same prompts, or over the same draws and prompts.

    Args:
        a, b: one number a prompt, (N,), or a row of them for each calibration draw, (C, N).
        resamples: of the studentized bootstrap; 0 for Student's interval alone, which is quick.

    Two equal values differ by 0, also when both are infinite (two images identical to the
    reference). A finite value against an infinite one differs infinitely.
    """
    a_CN, b_CN = _as_table(a), _as_table(b)
    if a_CN.shape != b_CN.shape:
        raise ValueError(
            f"{_size(a_CN)} against {_size(b_CN)}: a paired difference needs the same prompts and "
            "calibration draws in the same order"
        )
    equal = a_CN == b_CN
    table_CN = np.where(equal, 0.0, np.where(equal, 0.0, a_CN) - np.where(equal, 0.0, b_CN))
    estimate, p_value = _judge(table_CN, seed=seed, resamples=resamples)
    with np.errstate(invalid="ignore"):
        by_prompt = table_CN.mean(axis=0)
    above, below = int((by_prompt > 0).sum()), int((by_prompt < 0).sum())
    return Difference(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        standard_error=estimate.standard_error,
        n=estimate.n,
        p_value=p_value,
        median=float(np.quantile(by_prompt, 0.5, method="inverted_cdf")),
        sign_p_value=sign_test(above, below),
    )


def paired_interval(a: Any, b: Any) -> tuple[Estimate, float]:
    """Mean of a - b with Student's interval, and its two-sided p-value: what is quick of the above.

    Args:
        a, b: as in `paired_difference`, finite.
    """
    return _judge(_as_table(a) - _as_table(b), seed=0, resamples=0)


def paired_ratio(a: Any, b: Any) -> Difference:
    """Geometric mean of a / b over prompts (and draws), with Student's interval and p-value.

    On the logarithms, so that doubling and halving weigh the same; their tails are light, so that
    Student's t holds its level on the few prompts whose per-step errors are known.

    Args:
        a, b: as in `paired_difference`.

    Raises:
        ValueError: a value that is not above 0, or fewer than two prompts.
    """
    a_CN, b_CN = _as_table(a), _as_table(b)
    if a_CN.shape != b_CN.shape or a_CN.shape[1] < 2:
        raise ValueError(
            f"{_size(a_CN)} against {_size(b_CN)}: a paired ratio needs the same two or more "
            "prompts in the same order"
        )
    if not (
        np.isfinite(a_CN).all() and np.isfinite(b_CN).all() and min(a_CN.min(), b_CN.min()) > 0
    ):
        raise ValueError("a ratio needs finite values above 0; compare differences instead")
    found = paired_difference(np.log(a_CN), np.log(b_CN), seed=0, resamples=0)
    value, low, high, median = np.exp([found.value, found.low, found.high, found.median]).tolist()
    return Difference(
        value=value,
        low=low,
        high=high,
        standard_error=found.standard_error * value,
        n=found.n,
        p_value=found.p_value,
        median=median,
        sign_p_value=found.sign_p_value,
    )


def holm(p_values: Mapping[str, float], *, alpha: float = 1 - CONFIDENCE) -> dict[str, HolmResult]:
    """Step-down correction: the chance of one or more false findings stays at or below `alpha`.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise ValueError(f"{name}: p={p_value} is no probability; give a number in [0, 1]")
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    results: dict[str, HolmResult] = {}
    running = 0.0
    for rank, (name, p_value) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * p_value))
        results[name] = HolmResult(p_value=p_value, adjusted=running, rejected=running <= alpha)
    return {name: results[name] for name in p_values}


def metric_from_values(
    values: Any,
    *,
    higher_is_better: bool | None,
    against: str,
    seed: int,
    resamples: int = RESAMPLES,
    note: str = "",
    unit: str = "",
) -> Metric:
    """A metric that is a mean over prompts, with its interval."""
    estimate = mean_estimate(values, seed=seed, resamples=resamples)
    return metric_from_estimate(
        estimate, higher_is_better=higher_is_better, against=against, note=note, unit=unit
    )


def metric_from_estimate(
    estimate: Estimate, *, higher_is_better: bool | None, against: str, note: str, unit: str
) -> Metric:
    several = estimate.n > 1
    known = several and np.isfinite(estimate.standard_error)
    return Metric(
        value=estimate.value,
        higher_is_better=higher_is_better,
        n=estimate.n,
        against=against,
        standard_error=estimate.standard_error if known else None,
        interval=[estimate.low, estimate.high] if several else None,
        interval_kind=INTERVAL95 if several else "",
        note=note,
        unit=unit,
    )


def sign_test(above: int, below: int) -> float:
    """Two-sided p-value of as many values above 0 as below; zeros are left out.

    Source: Dixon and Mood 1946.
    """
    return min(1.0, 2 * float(bdtr(min(above, below), above + below, 0.5)))


@dataclass(frozen=True)
class _Mean:
    """A mean with the parts of its variance, each with its degrees of freedom."""

    value: float
    parts: tuple[tuple[float, int], ...]

    @property
    def error(self) -> float:
        return math.sqrt(sum(variance for variance, _ in self.parts))

    def reach(self, tail: float) -> float:
        """Half the width of the interval that leaves `tail` out on each side."""
        return math.sqrt(sum(float(stdtrit(f, tail)) ** 2 * v for v, f in self.parts))

    def p_value(self) -> float:
        """Two-sided: the level at which the interval ends at 0."""
        distance = abs(self.value)
        if len(self.parts) == 1:
            return float(2 * stdtr(self.parts[0][1], -distance / self.error))
        low, high = math.log(_LEAST_TAIL), math.log(0.5)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.reach(math.exp(middle)) > distance else (low, middle)
        return 2 * math.exp(high)


def _judge(table_CN: Array, *, seed: int, resamples: int) -> tuple[Estimate, float]:
    """The mean with its interval, and the two-sided p-value of a mean of 0 that fits it."""
    prompts = table_CN.shape[1]
    if not np.isfinite(table_CN).all():
        return _infinite(table_CN), 1.0
    mean = _mean_of(table_CN)
    if mean.error == 0:
        point = Estimate(value=mean.value, low=mean.value, high=mean.value,
                         standard_error=0.0, n=prompts)  # fmt: skip
        return point, 0.0 if prompts > 1 and mean.value != 0 else 1.0
    reach, p_value = mean.reach(_TAIL), mean.p_value()
    low, high = mean.value - reach, mean.value + reach
    if len(table_CN) == 1 and resamples > 0 and prompts >= FEWEST_RESAMPLED:
        t_R = _studentized_means(table_CN[0], seed=seed, resamples=resamples)
        low_t, high_t = np.quantile(t_R, [_TAIL, 1 - _TAIL], method="inverted_cdf")
        # Where nearly all prompts are equal, many resamples have no spread and bound nothing.
        low_t, high_t = (float(t) if np.isfinite(t) else 0.0 for t in (low_t, high_t))
        low = min(low, mean.value - high_t * mean.error)
        high = max(high, mean.value - low_t * mean.error)
        t = mean.value / mean.error
        tail = min(np.count_nonzero(t_R >= t), np.count_nonzero(t_R <= t))
        p_value = max(p_value, min(1.0, 2 * (tail + 1) / (resamples + 1)))
    estimate = Estimate(value=mean.value, low=low, high=high, standard_error=mean.error, n=prompts)
    return estimate, p_value


def _mean_of(table_CN: Array) -> _Mean:
    """See `crossed_mean`."""
    draws, prompts = table_CN.shape
    size, mean = table_CN.size, float(table_CN.mean())
    if draws == 1 or prompts == 1:
        variance = float(table_CN.var(ddof=1)) / size if size > 1 else 0.0
        return _Mean(mean, ((variance, size - 1),))
    by_draw, by_prompt = table_CN.mean(axis=1), table_CN.mean(axis=0)
    rest = table_CN - by_draw[:, None] - by_prompt[None, :] + mean
    square_draw = prompts * float(by_draw.var(ddof=1))
    square_prompt = draws * float(by_prompt.var(ddof=1))
    square_rest = float((rest**2).sum()) / ((draws - 1) * (prompts - 1))
    of_prompts = _Mean(mean, ((square_prompt / size, prompts - 1),))
    both = _Mean(
        mean,
        (
            (square_draw / size, draws - 1),
            (max(0.0, square_prompt - square_rest) / size, prompts - 1),
        ),
    )
    return max(both, of_prompts, key=lambda found: found.reach(_TAIL))


def _infinite(table_CN: Array) -> Estimate:
    """Where all are the same infinity the mean is known; else nothing bounds it."""
    with np.errstate(invalid="ignore"):
        value = float(table_CN.mean())
    known = bool((table_CN == table_CN.flat[0]).all())
    return Estimate(
        value=value,
        low=value if known else float("-inf"),
        high=value if known else float("inf"),
        standard_error=float("nan"),
        n=table_CN.shape[1],
    )


def _studentized_means(values_N: Array, *, seed: int, resamples: int) -> Array:
    """(mean of a resample - mean) / its standard error; infinite where all its values are equal."""
    generator = np.random.default_rng(seed)
    count, mean = len(values_N), values_N.mean()
    parts = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn_RN = values_N[generator.integers(0, count, size=(rows, count))]
        shift_R = drawn_RN.mean(axis=1) - mean
        with np.errstate(divide="ignore", invalid="ignore"):
            t_R = shift_R / (drawn_RN.std(axis=1, ddof=1) / count**0.5)
        parts.append(np.where(np.isnan(t_R), 0.0, t_R))
    return np.concatenate(parts)


def _as_vector(values: Any) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"values of shape {vector.shape}; give one number a prompt, at least one")
    return _without_nan(vector)


def _as_table(values: Any) -> Array:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 1:
        table = table[None]
    if table.ndim != 2 or table.size == 0:
        raise ValueError(
            f"values of shape {table.shape}; give one number a prompt, or one a draw and prompt"
        )
    return _without_nan(table)


def _without_nan(values: Array) -> Array:
    if np.isnan(values).any():
        raise ValueError(
            f"{int(np.isnan(values).sum())} of {values.size} values are NaN; find the damaged "
            "images first, a mean over the rest would hide them"
        )
    return values


def _size(table_CN: Array) -> str:
    draws, prompts = table_CN.shape
    return f"{prompts} values" if draws == 1 else f"{draws} draws of {prompts} values"
