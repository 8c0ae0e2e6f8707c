"""Uncertainty: paired bootstrap over prompts, differences, Holm's correction, the noise floor.

Every method sees the same prompts and the same noise, so the prompt is the unit that is resampled.
Where a prompt has several seeds, average over its seeds first: the prompt is then the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from evaluation.records import Metric

RESAMPLES = 10_000
CONFIDENCE = 0.95
BOOTSTRAP95 = "bootstrap95"
_CHUNK = 500  # resamples drawn at once: bounds the memory of the index matrix

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(kw_only=True)
class Estimate:
    """A mean over prompts with its percentile interval."""

    value: float
    low: float
    high: float
    standard_error: float
    n: int


@dataclass(kw_only=True)
class Difference(Estimate):
    """Mean of a minus b over prompts; `p_value` is two-sided, from the same resamples."""

    p_value: float


@dataclass(kw_only=True)
class HolmResult:
    p_value: float
    adjusted: float
    rejected: bool


def bootstrap_mean(values: Any, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean with a 95 % percentile interval over resampled prompts.

    Infinities stay: a resample that holds one has an infinite mean, and a limit of the interval
    is infinite when enough resamples are. Order statistics are used without interpolation, so that
    no infinity turns into NaN. With infinities the standard error is NaN.

    Source: Efron 1979, the percentile method.
    """
    values_N = _as_vector(values)
    means = _resampled_means(values_N, seed=seed, resamples=resamples)
    low, high = _percentile_interval(means)
    finite = bool(np.isfinite(means).all())
    return Estimate(
        value=float(values_N.mean()),
        low=low,
        high=high,
        standard_error=float(means.std(ddof=1)) if finite else float("nan"),
        n=len(values_N),
    )


def mean_over_runs(values: Any) -> Estimate:
    """Mean of a few independent runs, too few for a bootstrap, with Student's 95 % interval.

    Raises:
        ValueError: fewer than two runs.
    """
    values_N = _as_vector(values)
    count = len(values_N)
    if count < 2:
        raise ValueError(f"{count} run; an interval needs two or more")
    error = float(values_N.std(ddof=1)) / count**0.5
    half = float(student_t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    mean = float(values_N.mean())
    return Estimate(value=mean, low=mean - half, high=mean + half, standard_error=error, n=count)


def paired_difference(a: Any, b: Any, *, seed: int, resamples: int = RESAMPLES) -> Difference:
    """Mean of a - b over prompts, with interval and two-sided bootstrap p-value.

    Two equal values differ by 0, also when both are infinite (two images identical to the
    reference); a finite value against an infinite one differs infinitely, and the mean with it.
    """
    a_N, b_N = _as_vector(a), _as_vector(b)
    if len(a_N) != len(b_N):
        raise ValueError(
            f"{len(a_N)} values against {len(b_N)}: a paired difference needs the same prompts "
            "in the same order"
        )
    equal = a_N == b_N
    differences = np.where(equal, 0.0, np.where(equal, 0.0, a_N) - np.where(equal, 0.0, b_N))
    means = _resampled_means(differences, seed=seed, resamples=resamples)
    low, high = _percentile_interval(means)
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    finite = bool(np.isfinite(means).all())
    return Difference(
        value=_mean(differences),
        low=low,
        high=high,
        standard_error=float(means.std(ddof=1)) if finite else float("nan"),
        n=len(a_N),
        p_value=min(1.0, 2 * (tail + 1) / (resamples + 1)),
    )


def paired_ratio(a: Any, b: Any) -> Difference:
    """Geometric mean of a / b over prompts, with Student's 95 % interval and two-sided p-value.

    On the logarithms, so that doubling and halving weigh the same; Student's rather than the
    bootstrap's, as per-step errors are often known on a few prompts only, where bootstrap intervals
    are too narrow.

    Raises:
        ValueError: a value that is not above 0, or fewer than two prompts.
    """
    a_N, b_N = _as_vector(a), _as_vector(b)
    if len(a_N) != len(b_N) or len(a_N) < 2:
        raise ValueError(
            f"{len(a_N)} values against {len(b_N)}: a paired ratio needs the same two or more "
            "prompts in the same order"
        )
    if not (np.isfinite(a_N).all() and np.isfinite(b_N).all() and min(a_N.min(), b_N.min()) > 0):
        raise ValueError("a ratio needs finite values above 0; compare differences instead")
    logs = np.log(a_N) - np.log(b_N)
    run = mean_over_runs(logs)
    if run.standard_error > 0:
        t = abs(run.value) / run.standard_error
        p_value = float(2 * student_t.sf(t, run.n - 1))
    else:
        p_value = 1.0 if run.value == 0 else 0.0
    value, low, high = (float(np.exp(x)) for x in (run.value, run.low, run.high))
    return Difference(
        value=value,
        low=low,
        high=high,
        standard_error=run.standard_error * value,
        n=run.n,
        p_value=p_value,
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
    """A metric that is a mean over prompts, with its bootstrap interval."""
    estimate = bootstrap_mean(values, seed=seed, resamples=resamples)
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
        interval_kind=BOOTSTRAP95 if several else "",
        note=note,
        unit=unit,
    )


def separable_from_floor(metric: Metric, *, floor: Metric) -> bool | None:
    """Whether `metric` differs from the noise floor by more than both intervals allow.

    A distance to the reference (`against == "reference"`) must also be on the worse side of the
    floor: what lies nearer to the reference than the same model run twice is no difference.
    None when either has no value.
    """
    if metric.value is None or floor.value is None:
        return None
    low, high = metric.interval or [metric.value, metric.value]
    floor_low, floor_high = floor.interval or [floor.value, floor.value]
    above, below = bool(low > floor_high), bool(high < floor_low)
    if metric.against == "reference" and metric.higher_is_better is not None:
        return below if metric.higher_is_better else above
    return above or below


def _as_vector(values: Any) -> Array:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"values of shape {vector.shape}; give one number a prompt, at least one")
    if np.isnan(vector).any():
        raise ValueError(
            f"{int(np.isnan(vector).sum())} of {len(vector)} values are NaN; find the damaged "
            "images first, a mean over the rest would hide them"
        )
    return vector


def _resampled_means(values_N: Array, *, seed: int, resamples: int) -> Array:
    if resamples < 1:
        raise ValueError(f"resamples={resamples}; give at least 1 (the default is {RESAMPLES})")
    generator = np.random.default_rng(seed)
    count = len(values_N)
    parts = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        index_RN = generator.integers(0, count, size=(rows, count))
        with np.errstate(invalid="ignore"):
            parts.append(values_N[index_RN].mean(axis=1))
    return np.concatenate(parts)


def _percentile_interval(means: Array) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    if np.isnan(means).any():  # +inf and -inf met in one resample: nothing can be said
        return float("-inf"), float("inf")
    low, high = np.percentile(means, [tail, 100 - tail], method="inverted_cdf")
    return float(low), float(high)


def _mean(values: Array) -> float:
    with np.errstate(invalid="ignore"):
        return float(values.mean())
