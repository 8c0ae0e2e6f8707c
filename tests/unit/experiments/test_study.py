"""The studies over calibration seeds: their arithmetic, a small run, and the committed results."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from evaluation.statistics import mean_over_runs
from experiments.studies import boundaries, held_out
from experiments.studies.study import (
    RESULTS,
    Outcome,
    Study,
    command_of,
    main,
    ratios,
    read_csv,
    to_csv,
    to_markdown,
)

STUDIES = (boundaries.STUDY, held_out.STUDY)


def outcome(arm: str, seed: int, error: float) -> Outcome:
    return Outcome(
        bits="w8a8_int8", recipe="r", arm=arm, seed=seed, layer_error=error, step_error=2 * error
    )


def test_the_interval_over_runs_is_students() -> None:
    values = [1.0, 2.0, 4.0, 3.5, 0.5]
    mean = mean_over_runs(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values)
    )
    assert (mean.low, mean.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="two or more"):
        mean_over_runs([1.0])


def test_arms_are_compared_within_a_seed() -> None:
    """Seeds differ a hundredfold, arms by a factor of 2: the ratio's interval has no width."""
    outcomes = [
        outcome(arm, seed, factor * 10.0**seed)
        for seed in range(3)
        for arm, factor in (("none", 1.0), ("graph", 0.5), ("random", 2.0))
    ]
    rows = ratios(outcomes, pairs=(("graph", "none"), ("random", "none"), ("graph", "random")))
    by_pair = {(row.arm, row.against): row for row in rows}
    assert by_pair["graph", "none"].layer_error.value == pytest.approx(0.5)
    assert by_pair["graph", "none"].layer_error.high == pytest.approx(0.5)
    assert by_pair["graph", "random"].step_error.value == pytest.approx(0.25)
    text = to_markdown(rows, title="t", command="c")
    assert "**0.500 [0.500, 0.500]**" in text
    assert "| 2.000 [2.000, 2.000] " in text


SMALL = (
    *("model.height=16", "model.width=16", "model.num_inference_steps=2"),
    *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=4"),
    "metrics.teacher_forced_prompts=2",
)


def run_small(study: Study, tmp_path: Path, *overrides: str) -> dict[tuple[str, str, int], float]:
    where = ("--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"))
    main(study, ["--seeds", "2", "--bits", "w8a8_int8", *where, *SMALL, *overrides])
    path = tmp_path / "out" / f"{study.name}.csv"
    outcomes = read_csv(path)
    assert to_csv(outcomes) == path.read_text()
    assert len(outcomes) == 2 * len(study.recipes) * len(study.arms)
    assert all(math.isfinite(o.layer_error) and o.step_error > 0 for o in outcomes)
    return {(o.recipe, o.arm, o.seed): o.layer_error for o in outcomes}


def test_a_small_run_of_boundaries(zoo: Path, tmp_path: Path) -> None:
    study = replace(boundaries.STUDY, recipes={"search": ("method.alpha_step=0.5",)})
    model = (f"model.path={zoo / 'tiny_mmdit'}", "model.call.max_sequence_length=24")
    errors = run_small(study, tmp_path, *model)
    assert errors["search", "graph", 0] != errors["search", "none", 0]
    assert errors["search", "random", 0] != errors["search", "random", 1]


def test_a_small_run_of_held_out(zoo: Path, tmp_path: Path) -> None:
    study = replace(held_out.STUDY, recipes={"four prompts": ()})
    errors = run_small(study, tmp_path, f"model.path={zoo / 'tiny_unet'}")
    assert errors["four prompts", "held-out search", 0] < errors["four prompts", "search", 0]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_committed_tables_are_what_the_committed_numbers_give(study: Study) -> None:
    outcomes = read_csv(RESULTS / f"{study.name}.csv")
    rows = ratios(outcomes, pairs=study.pairs)
    text = to_markdown(rows, title=study.title, command=command_of(study))
    assert text == (RESULTS / f"{study.name}.md").read_text()
    assert len({o.seed for o in outcomes}) >= 5
    assert {(o.recipe, o.arm, o.bits) for o in outcomes} == {
        (recipe, arm, bits) for recipe in study.recipes for arm in study.arms for bits in study.bits
    }
