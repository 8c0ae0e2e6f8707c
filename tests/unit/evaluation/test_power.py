"""How many images tell two rows apart: by simulation, and what is not to be known."""

import math

import numpy as np
import pytest
from scipy.special import stdtr

from evaluation.power import POWER, images_needed, smallest_told
from evaluation.statistics import Estimate, mean_estimate


def found(value: float, spread: float, n: int) -> Estimate:
    error = spread / math.sqrt(n)
    return Estimate(value=value, low=value - error, high=value + error, standard_error=error, n=n)


def share_told(size: float, n: int, *, trials: int = 4000) -> float:
    """Of samples of n, by Student's test at 5 %."""
    samples = np.random.default_rng(n).normal(size, 1.0, (trials, n))
    t = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / math.sqrt(n))
    return float((2 * stdtr(n - 1, -np.abs(t)) <= 0.05).mean())


@pytest.mark.parametrize("size", [1.5, 0.5, 0.2])
def test_so_many_images_tell_in_four_samples_of_five(size: float) -> None:
    count = images_needed(found(size, 1.0, 50))
    assert count is not None
    assert share_told(size, count) == pytest.approx(POWER, abs=0.04)


def test_what_is_told_by_n_needs_n() -> None:
    estimate = found(0.1, 1.0, 64)
    least = smallest_told(estimate)
    assert least is not None
    assert images_needed(estimate, size=least) == pytest.approx(64, abs=1)
    assert share_told(least, 64) == pytest.approx(POWER, abs=0.03)


def test_four_times_the_images_tell_half_the_difference() -> None:
    few, many = (images_needed(found(size, 1.0, 50)) for size in (0.2, 0.1))
    assert few is not None
    assert many is not None
    assert many / few == pytest.approx(4, rel=0.03)


def test_what_cannot_be_known_is_none() -> None:
    assert images_needed(found(0.0, 1.0, 50)) is None
    assert images_needed(found(1e-9, 1.0, 50)) is None
    assert images_needed(mean_estimate([math.inf, 1.0], seed=0)) is None
    assert smallest_told(mean_estimate([1.0], seed=0)) is None
    assert images_needed(found(5.0, 0.0, 50)) == 3
