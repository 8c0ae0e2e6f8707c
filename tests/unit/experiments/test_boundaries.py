"""The experiment on SegLinear's boundaries: its arithmetic, and one small run of it."""

import csv
import math
from pathlib import Path

import pytest
from scipy import stats

from evaluation.statistics import mean_over_runs
from experiments import boundaries
from experiments.boundaries import Outcome, ratios, to_markdown


def outcome(arm: str, seed: int, error: float) -> Outcome:
    return Outcome(
        bits="w8a8_int8", recipe="r", arm=arm, seed=seed, layer_error=error, step_error=2 * error
    )


def test_the_interval_over_runs_is_students() -> None:
    values = [1.0, 2.0, 4.0, 3.5, 0.5]
    found = mean_over_runs(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values)
    )
    assert (found.low, found.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="two or more"):
        mean_over_runs([1.0])


def test_arms_are_compared_within_a_seed() -> None:
    """Seeds differ a hundredfold, arms by a factor of 2: the ratio's interval has no width."""
    outcomes = [
        outcome(arm, seed, factor * 10.0**seed)
        for seed in range(3)
        for arm, factor in (("none", 1.0), ("graph", 0.5), ("random", 2.0), ("mismatched", 1.0))
    ]
    rows = {(row["boundaries"], row["against"]): row for row in ratios(outcomes)}
    assert rows["graph", "none"]["layer_error"] == pytest.approx(0.5)
    assert rows["graph", "none"]["layer_error_high"] == pytest.approx(0.5)
    assert rows["graph", "random"]["step_error"] == pytest.approx(0.25)
    text = to_markdown(list(rows.values()), command="c")
    assert "**0.500 [0.500, 0.500]**" in text
    assert "| 2.000 [2.000, 2.000] |" in text


def test_a_small_run(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ("method.alpha_step=0.5",)
    monkeypatch.setattr(boundaries, "RECIPES", {"with alpha search": recipe})
    boundaries.main(
        [
            *("--seeds", "2", "--bits", "w8a8_int8", "--out", str(tmp_path / "out")),
            *("--store", str(tmp_path / "store")),
            f"model.path={zoo / 'tiny_mmdit'}",
            *("model.height=16", "model.width=16", "model.num_inference_steps=2"),
            *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=2"),
            *("metrics.teacher_forced_prompts=2", "model.call.max_sequence_length=24"),
        ]
    )
    with (tmp_path / "out" / "boundaries.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * len(boundaries.RECIPES) * len(boundaries.ARMS)
    assert all(math.isfinite(float(row["layer_error"])) for row in rows)
    errors = {(r["recipe"], r["arm"], r["seed"]): float(r["layer_error"]) for r in rows}
    for recipe in boundaries.RECIPES:
        assert errors[recipe, "graph", "0"] != errors[recipe, "none", "0"]
        assert errors[recipe, "random", "0"] != errors[recipe, "random", "1"]
