import math

import numpy as np
import pytest

from evaluation.records import Metric
from evaluation.statistics import (
    bootstrap_mean,
    holm,
    metric_from_values,
    paired_difference,
    separable_from_floor,
)

INF = math.inf


def test_interval_agrees_with_the_normal_one_and_with_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    estimate = bootstrap_mean(values, seed=1)
    error = values.std(ddof=1) / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(error, rel=0.03)
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    other = bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (estimate.low, estimate.high) == pytest.approx((other.low, other.high), abs=0.02)


def test_seed_decides_and_resamples_count() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=1, resamples=500)


def test_constant_values_have_no_width() -> None:
    estimate = bootstrap_mean([2.0] * 10, seed=0, resamples=100)
    assert (estimate.low, estimate.high, estimate.standard_error) == (2.0, 2.0, 0.0)


def test_infinities_stay_honest() -> None:
    everything = bootstrap_mean([INF] * 5, seed=0, resamples=200)
    assert (everything.value, everything.low, everything.high) == (INF, INF, INF)
    some = bootstrap_mean([10.0] * 19 + [INF], seed=0, resamples=2000)
    assert (some.value, some.low, some.high) == (INF, 10.0, INF)
    assert math.isnan(some.standard_error)
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_mean([1.0, math.nan], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([], seed=0)


def test_paired_difference_sees_what_unpaired_spread_hides() -> None:
    generator = np.random.default_rng(0)
    prompts = generator.normal(0, 10, size=100)
    a, b = prompts + 0.5, prompts + 0.1 * generator.normal(size=100)
    difference = paired_difference(a, b, seed=0, resamples=2000)
    assert difference.low > 0.4
    assert difference.high < 0.6
    assert difference.p_value == pytest.approx(2 / 2001)
    reverse = paired_difference(b, a, seed=0, resamples=2000)
    assert reverse.value == pytest.approx(-difference.value)


def test_paired_difference_of_equal_and_infinite_values() -> None:
    same = paired_difference([INF, 3.0, 4.0], [INF, 3.0, 4.0], seed=0, resamples=200)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert paired_difference([INF, 1.0], [2.0, 1.0], seed=0, resamples=50).value == INF
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0], [1.0, 2.0], seed=0)


def test_holm_against_the_worked_example() -> None:
    results = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    adjusted = {name: result.adjusted for name, result in results.items()}
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert [name for name, result in results.items() if result.rejected] == ["a", "d"]
    with pytest.raises(ValueError, match="no probability"):
        holm({"a": 1.5})


def make_metric(
    value: float | None, low: float = 0, high: float = 0, *, against: str = "reference",
    higher: bool = True,
) -> Metric:  # fmt: skip
    interval = None if value is None else [low, high]
    return Metric(
        value=value, higher_is_better=higher, n=4, against=against, interval=interval
    )  # fmt: skip


def test_separable_from_floor() -> None:
    floor = make_metric(40, 38, 42)
    assert separable_from_floor(make_metric(20, 19, 21), floor=floor) is True
    assert separable_from_floor(make_metric(38, 36, 39), floor=floor) is False
    # nearer to the reference than the floor: not a difference
    assert separable_from_floor(make_metric(INF, INF, INF), floor=floor) is False
    assert separable_from_floor(make_metric(None), floor=floor) is None
    # a distance to the dataset counts both ways
    floor = make_metric(10, 9, 11, against="dataset", higher=False)
    better = make_metric(5, 4, 6, against="dataset", higher=False)
    assert separable_from_floor(better, floor=floor) is True


def test_one_prompt_has_no_interval() -> None:
    metric = metric_from_values([3.0], higher_is_better=True, against="reference", seed=0)
    assert (metric.value, metric.interval, metric.standard_error) == (3.0, None, None)
    assert (metric.n, metric.interval_kind) == (1, "")
