"""A method against itself: tables of equals, judged by the code that judges all rows."""

import numpy as np
import pytest

import experiments.studies.false_winners as false_winners_study
from evaluation.records import Metric, Record
from evaluation.report.rows import Scored
from experiments.studies.false_winners import Rate, false_winners, report, splits

IDS = [f"p{n}" for n in range(16)]


def cells(count: int, *, between: float, seed: int, jump: float = 0.0) -> list[Scored]:
    """One method over calibration draws; `jump` makes the first half another method."""
    generator = np.random.default_rng(seed)
    prompts = generator.normal(0, 0.5, 16)
    found = []
    for draw in range(count):
        shift = generator.normal(0, between) + (jump if draw < count // 2 else 0.0)
        errors = np.exp(prompts + shift + generator.normal(0, 0.05, 16))
        metric = Metric(
            value=float(errors.mean()), higher_is_better=False, n=16, against="reference"
        )
        record = Record(
            run_id=f"r{draw}", status="ok", model="m", method="rtn", bits="w8", dataset="d", seed=0,
            metrics={"step_error": metric},
            protocol={"calibration_prompts_hash": f"h{draw}", "calibration_prompts": 16},
        )  # fmt: skip
        scores = {"step_error": dict(zip(IDS, errors.tolist(), strict=True))}
        found.append(Scored(record=record, scores=scores))
    return found


def test_arms_share_no_draw_and_every_split_is_there_once() -> None:
    pairs = splits(10, per_arm=1)
    assert len(pairs) == len(set(pairs)) == 45
    halves = splits(10, per_arm=5)
    assert len(halves) == len(set(halves)) == 126
    assert all(not set(a) & set(b) for a, b in halves)
    assert splits(10, per_arm=3, most=20) == splits(10, per_arm=3, most=20)
    assert len(splits(10, per_arm=3, most=20)) == 20


@pytest.mark.parametrize("between", [0.0, 0.1])
def test_equals_win_in_one_table_of_twenty(between: float) -> None:
    rates = [
        false_winners(cells(10, between=between, seed=s), per_arm=3, most=40) for s in range(4)
    ]
    tables = sum(rate.tables for rate in rates)
    assert sum(rate.judged for rate in rates) / tables <= 0.1  # of dependent splits
    assert sum(rate.bold for rate in rates) / tables <= 0.1


def test_one_draw_an_arm_would_name_a_winner_nearly_always() -> None:
    """Which is why such a verdict names its draw, and is never bold."""
    rate = false_winners(cells(10, between=0.1, seed=0), per_arm=1)
    assert rate.judged / rate.tables > 0.5
    assert rate.bold == 0


def test_methods_that_differ_are_told_apart() -> None:
    """The count can find something: the arms of one split are two methods here."""
    rate = false_winners(cells(10, between=0.02, seed=0, jump=1.0), per_arm=5)
    assert rate.judged >= 1
    assert rate.bold >= 1


def test_the_report_counts_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(false_winners_study, "PER_ARM", (1,))
    text = report({("m", "rtn", "w8"): cells(10, between=0.1, seed=0)})
    assert "| all " in text
    assert Rate(tables=1, judged=0, bold=0) != Rate(tables=1, judged=1, bold=0)
