"""The closed forms of the study are those of the distances that the project measures."""

import csv
from pathlib import Path

import numpy as np
import pytest

from experiments.store.paths import RESULTS
from experiments.studies.distance_bias import (
    ESTIMATORS,
    Gaussians,
    of_gaussians,
    of_shapes,
    report,
)


@pytest.mark.parametrize("name", ["KID x1000", "Gaussian kernel x1000"])
def test_an_unbiased_distance_has_the_closed_form_in_the_mean(name: str) -> None:
    source, generator = Gaussians(width=8), np.random.default_rng(0)
    values = [ESTIMATORS[name](*source.draw(generator, 40)) for _ in range(1500)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - source.truth(name)) < 3.5 * error
    assert error < 0.1 * abs(source.truth(name))


def test_a_frechet_distance_of_many_has_its_closed_form() -> None:
    source = Gaussians(width=4)
    a, b = source.draw(np.random.default_rng(0), 100_000)
    assert ESTIMATORS["FID"](a, b) == pytest.approx(source.truth("FID"), rel=0.03)


def test_biased_forms_fall_with_n_and_unbiased_ones_stay() -> None:
    found = of_gaussians(samples=2, sizes=(32, 256))
    by = {(one.features, one.estimator, one.n): one for one in found}
    for estimator in ("FID", "the same, biased form"):
        few, many = (by["Gaussian, 64", estimator, n] for n in (32, 256))
        assert few.mean > many.mean > few.truth
    few = by["Gaussian, 64", "KID x1000", 32]
    assert abs(few.mean - few.truth) < 4 * few.deviation / few.samples**0.5
    text = report(found)
    assert text.count("| Gaussian, 512 ") == 2 * len(ESTIMATORS)


def test_subsets_are_held_against_all() -> None:
    a, b = Gaussians(width=6).draw(np.random.default_rng(1), 300)
    found = of_shapes(a, b, samples=3, sizes=(16, 64, 512))
    assert {one.n for one in found} == {16, 64}
    assert {one.samples for one in found} == {30}
    assert {one.truth for one in found if one.estimator == "FID"} == {ESTIMATORS["FID"](a, b)}


def test_the_pages_figures_are_the_results() -> None:
    page = " ".join(Path("docs/findings.md").read_text().split())
    with (RESULTS / "distance_bias.csv").open(newline="") as file:
        rows = {(row["features"], row["distance"], row["n"]): row for row in csv.DictReader(file)}
    few, many = (rows["Gaussian, 512", "FID", n] for n in ("128", "2048"))
    truth, mean, last = (float(x) for x in (few["truth"], few["mean"], many["mean"]))
    said = f"distance is {truth:.1f}, FID of 128 images is {mean:.0f}, of 2,048 still {last:.0f}"
    assert said in page
    assert all(abs(float(row["mean"]) / float(row["truth"]) - 1) < 0.05
               for (source, name, n), row in rows.items()
               if source.startswith("Gaussian") and name == "KID x1000" and n != "16")  # fmt: skip
