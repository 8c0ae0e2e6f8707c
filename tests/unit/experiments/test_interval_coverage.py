import pytest

from experiments.studies.interval_coverage import DISTRIBUTIONS, coverage


@pytest.mark.parametrize("name", ["normal", "lognormal, sigma 1"])
def test_what_is_used_covers_best(name: str) -> None:
    draw, mean = DISTRIBUTIONS[name]
    found = coverage(draw, mean, n=16, trials=100)
    assert found["used here"] >= found["Student"]
    assert found["used here"] >= found["percentile bootstrap"]


def test_rare_large_values_are_not_covered_by_any() -> None:
    """The study says so; if an interval did, the sign test beside it would not be needed."""
    draw, mean = DISTRIBUTIONS["small, 3 % of them large"]
    assert max(coverage(draw, mean, n=16, trials=60).values()) < 0.7
