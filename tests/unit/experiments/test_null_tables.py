"""Tables of equals: the study counts what it says, and sees a difference that is there."""

import numpy as np

import experiments.studies.null_tables as study
from evaluation.report.comparison import Verdict, compare_rows
from evaluation.report.rows import Scored


def test_equals_are_rarely_told_apart() -> None:
    rates = study.rates(tables=12, sizes=(16, 64))
    assert {rate.n for rate in rates} == {16, 64}
    assert len(rates) == 10
    assert sum(rate.false for rate in rates) <= 0.2 * sum(rate.tables for rate in rates)
    assert "| difference of two KID, no Holm " in study.report(rates)


def test_a_row_that_is_better_is_told() -> None:
    generator = np.random.default_rng(0)
    rows = study.rows_of_equals(generator, prompts=16, draws=1, metrics={})
    errors = rows[1].scores["step_error"]
    better = {name: 0.5 * value for name, value in errors.items()}
    rows[1] = Scored(record=rows[1].record, scores={"step_error": better})
    compared = compare_rows(rows, against="m0")
    assert compared[0].verdict is Verdict.better
    assert all(row.verdict is Verdict.unclear for row in compared[1:])
