import math

import numpy as np
import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from evaluation.statistics import (
    crossed_mean,
    holm,
    mean_estimate,
    metric_from_values,
    paired_difference,
    paired_interval,
    paired_ratio,
    share_metric,
    sign_test,
)

INF = math.inf


def test_interval_agrees_with_students_where_nothing_is_skewed() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    estimate = mean_estimate(values, seed=1)
    expected = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / 20)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    few = mean_estimate(values[:7], seed=1)  # too few for a bootstrap
    expected = ttest_1samp(values[:7], 0.0).confidence_interval(0.95)
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high))


def covered(draw, mean: float, *, n: int, trials: int = 300) -> float:
    inside = 0
    for trial in range(trials):
        estimate = mean_estimate(draw(n), seed=trial, resamples=500)
        inside += estimate.low <= mean <= estimate.high
    return inside / trials


@pytest.mark.parametrize(
    ("sigma", "n", "least"), [(0.2, 16, 0.92), (1.0, 16, 0.87), (1.0, 64, 0.91)]
)
def test_intervals_cover(sigma: float, n: int, least: float) -> None:
    """A percentile bootstrap covers 90, 83 and 91 % of these lognormal means."""
    generator = np.random.default_rng(5)
    found = covered(lambda count: generator.lognormal(0, sigma, count), math.exp(sigma**2 / 2), n=n)
    assert found >= least


def test_seed_decides_and_resamples_count() -> None:
    values = np.random.default_rng(0).lognormal(size=30)
    assert mean_estimate(values, seed=1) == mean_estimate(values, seed=1)
    assert mean_estimate(values, seed=1) != mean_estimate(values, seed=2)
    assert mean_estimate(values, seed=1) != mean_estimate(values, seed=1, resamples=500)


def test_constant_values_have_no_width() -> None:
    estimate = mean_estimate([2.0] * 10, seed=0, resamples=100)
    assert (estimate.low, estimate.high, estimate.standard_error) == (2.0, 2.0, 0.0)


def test_infinities_stay_honest() -> None:
    everything = mean_estimate([INF] * 5, seed=0, resamples=200)
    assert (everything.value, everything.low, everything.high) == (INF, INF, INF)
    some = mean_estimate([10.0] * 19 + [INF], seed=0, resamples=2000)
    assert (some.value, some.low, some.high) == (INF, -INF, INF)
    assert math.isnan(some.standard_error)
    with pytest.raises(ValueError, match="NaN"):
        mean_estimate([1.0, math.nan], seed=0)
    with pytest.raises(ValueError, match="at least one"):
        mean_estimate([], seed=0)


def false_findings(draws: int, *, between: float, trials: int = 600) -> float:
    """How often a table of nothing but noise has an interval without 0."""
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(trials):
        table = generator.normal(0, between, (draws, 1)) + generator.normal(0, 0.2, (1, 16))
        estimate = crossed_mean(table + generator.normal(0, 0.1, (draws, 16)))
        found += not estimate.low <= 0 <= estimate.high
    return found / trials


@pytest.mark.parametrize("between", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("draws", [3, 5, 10])
def test_draws_and_prompts_are_crossed(draws: int, between: float) -> None:
    assert false_findings(draws, between=between) < 0.07


def test_one_draw_says_nothing_of_others() -> None:
    assert false_findings(1, between=0.3) > 0.5


def test_the_crossed_layout_by_hand() -> None:
    table = np.array([[1.0, 3.0, 2.0], [15.0, 17.0, 19.0], [1.0, 7.0, 3.0]])
    estimate = crossed_mean(table)
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    square_rows, square_columns = 3 * rows.var(ddof=1), 3 * columns.var(ddof=1)
    square_rest = ((table - rows[:, None] - columns + table.mean()) ** 2).sum() / 4
    variances = np.array([square_rows, max(0.0, square_columns - square_rest)]) / 9
    half = math.sqrt((student_t.ppf(0.975, [2, 2]) ** 2 * variances).sum())
    assert estimate.value == table.mean()
    assert estimate.standard_error == pytest.approx(math.sqrt(variances.sum()))
    assert estimate.high - estimate.value == pytest.approx(half)
    assert estimate.n == 3
    at_its_end = paired_interval(table - estimate.low, np.zeros_like(table))
    assert at_its_end[1] == pytest.approx(0.05, rel=1e-3)  # the p-value fits the interval
    one = crossed_mean(table[:1])
    assert one.standard_error == pytest.approx(table[0].std(ddof=1) / math.sqrt(3))


def test_paired_difference_sees_what_unpaired_spread_hides() -> None:
    generator = np.random.default_rng(0)
    prompts = generator.normal(0, 10, size=100)
    a, b = prompts + 0.5, prompts + 0.1 * generator.normal(size=100)
    difference = paired_difference(a, b, seed=0, resamples=2000)
    assert difference.low > 0.4
    assert difference.high < 0.6
    assert difference.p_value == pytest.approx(2 / 2001)
    assert difference.median == pytest.approx(0.5, abs=0.05)
    assert difference.sign_p_value < 1e-20
    reverse = paired_difference(b, a, seed=0, resamples=2000)
    assert reverse.value == pytest.approx(-difference.value)


def test_one_prompt_that_differs_bounds_the_mean() -> None:
    """A third of the resamples lack it and have no spread: they bound nothing, Student's t does."""
    values = [1.0] * 31 + [0.999998]
    found = mean_estimate(values, seed=0)
    assert math.isfinite(found.low)
    assert found.low < 1 - 2e-6 / 32 < found.high


def test_paired_difference_of_equal_and_infinite_values() -> None:
    same = paired_difference([INF, 3.0, 4.0], [INF, 3.0, 4.0], seed=0, resamples=200)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    apart = paired_difference([INF, 1.0], [2.0, 1.0], seed=0, resamples=50)
    assert (apart.value, apart.low, apart.p_value) == (INF, -INF, 1.0)
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0], [1.0, 2.0], seed=0)


def test_holm_against_the_worked_example() -> None:
    results = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    adjusted = {name: result.adjusted for name, result in results.items()}
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert [name for name, result in results.items() if result.rejected] == ["a", "d"]
    with pytest.raises(ValueError, match="no probability"):
        holm({"a": 1.5})


def test_rare_large_differences_leave_the_sign_test() -> None:
    """One prompt of a hundred decides the mean: it cannot be told; the others' sign can."""
    values = np.full(100, 0.1)
    values[0] = -50.0
    found = paired_difference(values, np.zeros(100), seed=0)
    assert found.low < 0 < found.high
    assert (found.value < 0, found.median) == (True, 0.1)
    assert found.sign_p_value < 1e-20
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_p_values_of_heavy_tails_hold_their_level(shift: float) -> None:
    """CLIP differences of a demo: mostly small, a few large."""
    generator = np.random.default_rng(2)
    rejected = 0
    for trial in range(200):
        noise = generator.normal(0, 0.5, 64) + (generator.random(64) < 0.1) * (
            generator.exponential(5, 64) - 5
        )
        found = paired_difference(noise + shift, np.zeros(64), seed=trial, resamples=500)
        rejected += found.p_value <= 0.05
    assert rejected / 200 <= 0.08 if shift == 0 else rejected / 200 >= 0.4


def test_p_value_and_interval_agree() -> None:
    generator = np.random.default_rng(0)
    for trial in range(60):
        values = generator.lognormal(0, 0.8, 20) - 1.2
        found = paired_difference(values, np.zeros(20), seed=trial, resamples=999)
        if not 0.045 < found.p_value < 0.055:
            assert (found.low <= 0 <= found.high) == (found.p_value > 0.05)


def test_differences_over_draws() -> None:
    a = np.array([[1.0, 2.0, 4.0], [1.5, 2.5, 4.5]])
    found = paired_difference(a, a - 1, seed=0)
    assert (found.value, found.low, found.n) == (1.0, 1.0, 3)
    estimate, p_value = paired_interval(a, np.ones_like(a))
    crossed = crossed_mean(a - 1)
    assert (estimate.low, estimate.high) == (crossed.low, crossed.high)
    assert 0 < p_value < 1
    ratio = paired_ratio(a, 2 * a)
    assert (ratio.value, ratio.median) == pytest.approx((0.5, 0.5))
    with pytest.raises(ValueError, match="3 values against 2 draws of 3 values"):
        paired_difference(a[0], a, seed=0)


def test_a_share_has_an_exact_interval() -> None:
    share = share_metric(1, n=20, against="x", note="")
    assert share.interval == pytest.approx([0.00127, 0.24873], abs=1e-5)
    assert share_metric(0, n=128, against="x", note="").interval == pytest.approx(
        [0, 0.0284], abs=1e-4
    )


def test_one_prompt_has_no_interval() -> None:
    metric = metric_from_values([3.0], higher_is_better=True, against="reference", seed=0)
    assert (metric.value, metric.interval, metric.standard_error) == (3.0, None, None)
    assert (metric.n, metric.interval_kind) == (1, "")
