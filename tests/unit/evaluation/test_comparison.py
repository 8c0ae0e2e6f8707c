"""Rows against a baseline: paired ratios, verdicts, reasons."""

import math
import re

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from evaluation.records import Record
from evaluation.report.comparison import (
    Reason,
    Verdict,
    compare_rows,
    comparison_table,
    unexplained,
    without_baseline,
)
from evaluation.report.render import to_csv, to_markdown
from evaluation.report.rows import Scored
from evaluation.statistics import paired_ratio

IDS = [f"p{n}" for n in range(8)]
BASE = np.random.default_rng(0).uniform(0.01, 0.1, size=8)  # prompts differ tenfold


def scored(
    method: str, factor: float, *, noise: float = 0.02, bits: str = "w8a8_int8", draw: int = 0,
    **changes,
) -> Scored:  # fmt: skip
    fields = {"model": "tiny", "dataset": "d", "seed": 0, "status": "ok", **changes}
    protocol = {"calibration_prompts_hash": str(draw), "calibration_prompts": 4}
    fields["protocol"] = protocol | fields.get("protocol", {})
    record = Record(run_id=f"{method}{draw}", method=method, bits=bits, **fields)
    generator = np.random.default_rng([len(method), draw])
    errors = BASE * factor * np.exp(noise * generator.normal(size=8))
    return Scored(
        record=record,
        scores={
            "step_error": dict(zip(IDS, errors.tolist(), strict=True)),
            "psnr": dict(zip(IDS, (-10 * np.log10(errors)).tolist(), strict=True)),
        },
    )


def test_the_ratio_is_a_t_test_on_logarithms() -> None:
    a, b = BASE * np.exp(np.linspace(-0.1, 0.3, 8)), BASE
    found = paired_ratio(a, b)
    test = ttest_1samp(np.log(a / b), 0.0)
    low, high = test.confidence_interval(0.95)
    assert found.value == pytest.approx(math.exp(np.log(a / b).mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.p_value == pytest.approx(test.pvalue)
    assert paired_ratio(b, b).p_value == 1
    assert paired_ratio(2 * b, b).value == pytest.approx(2)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0, 0.0], [1.0, 1.0], "above 0"),
        ([1.0, math.inf], [1.0, 1.0], "finite"),
        ([1.0], [1.0], "two or more"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "same"),
    ],
)
def test_no_ratio_of_what_has_none(a: list[float], b: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        paired_ratio(a, b)


def test_verdicts_see_past_the_spread_of_prompts() -> None:
    rows = [
        scored("rtn", 1.0, noise=0.0),
        scored("better", 0.8),
        scored("same_but_noise", 1.0),
        scored("worse1", 1.2),
        scored("twin", 1.0, noise=0.0),
        scored("noise_floor", 1.0),
        scored("elsewhere", 2.0, bits="w4a4_int"),
    ]
    found = compare_rows(rows, against="rtn")
    verdicts = {row.record.method: row.verdict for row in found}
    assert verdicts == {
        "better": Verdict.better,
        "same_but_noise": Verdict.unclear,
        "worse1": Verdict.worse,
        "twin": Verdict.equal,
    }
    (better,) = (row for row in found if row.record.method == "better")
    assert better.ratio is not None
    assert better.ratio.value == pytest.approx(0.8, rel=0.03)
    assert better.differences["psnr"].value == pytest.approx(-10 * math.log10(0.8), abs=0.1)
    assert "clip" not in better.differences


def test_many_rows_need_smaller_p_values() -> None:
    """Holm over the table: what one question would call a difference, fifty may not."""
    alone = compare_rows(
        [scored("rtn", 1.0, noise=0.0), scored("m", 1.03, noise=0.03)], against="rtn"
    )
    many = [scored("rtn", 1.0, noise=0.0), scored("m", 1.03, noise=0.03)]
    many += [scored("x" * n, 1.0, noise=0.03) for n in range(2, 52)]
    crowd = compare_rows(many, against="rtn")
    assert alone[0].adjusted is not None
    assert crowd[0].adjusted is not None
    assert alone[0].ratio == crowd[0].ratio
    assert crowd[0].adjusted > alone[0].adjusted
    assert (alone[0].verdict, crowd[0].verdict) == (Verdict.worse, Verdict.unclear)


def test_the_layers_own_errors_stand_beside_the_models() -> None:
    rows = [scored("rtn", 1.0, noise=0.0), scored("gptq", 1.2)]
    for row, errors in zip(
        rows, ({"a": 0.1, "b": 0.2, "c": 0.0}, {"a": 0.05, "b": 0.05}), strict=True
    ):
        row.record.layers_quantized = [
            {"name": name, "relative_error": error} for name, error in errors.items()
        ]
    (found,) = compare_rows(rows, against="rtn")
    assert found.layer_ratio == pytest.approx(math.sqrt(0.5 * 0.25))
    rows[1].record.layers_quantized = [{"name": "a"}]
    assert compare_rows(rows, against="rtn")[0].layer_ratio is None


def test_rows_of_other_prompts_and_an_absent_baseline_are_refused() -> None:
    other = scored("gptq", 1.0)
    renamed = {"step_error": {f"q{k}": v for k, v in other.scores["step_error"].items()}}
    with pytest.raises(ValueError, match="different prompts"):
        compare_rows(
            [scored("rtn", 1.0), Scored(record=other.record, scores=renamed)], against="rtn"
        )
    with pytest.raises(ValueError, match="no row of rtm; there are rtn"):
        compare_rows([scored("rtn", 1.0)], against="rtm")


def test_a_worse_row_carries_its_reason_or_is_named() -> None:
    rows = compare_rows(
        [
            scored("rtn", 1.0, noise=0.0),
            scored("bad", 1.5),
            scored("sad", 1.4),
            scored("good", 0.5),
        ],
        against="rtn",
    )
    reasons = [Reason(reason="it is known why", methods=["b*"], bits=["w8*"])]
    assert [row.record.method for row in unexplained(rows, reasons=reasons)] == ["sad"]
    assert not unexplained(rows, reasons=[Reason(reason="-", methods=["*"])])
    assert len(unexplained(rows, reasons=[Reason(reason="-", methods=["*"], models=["x"])])) == 2
    table = comparison_table(rows, against="rtn", reasons=reasons, title="sweep")
    text = to_markdown(table)
    assert "1 better, 2 worse" in text
    assert "**worse (1 calibration draw)** (1)" in text
    assert "another draw may say otherwise" in text
    assert "- (1) it is known why" in text
    header, *lines = to_csv(table).splitlines()
    assert header.split(",")[3:6] == [
        "step_error_ratio",
        "step_error_ratio_low",
        "step_error_ratio_high",
    ]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("dataset", "other"),
        ("num_inference_steps", 4),
        ("model_weights", "another folder of the same name"),
        ("guidance_scale", 2.0),
        ("prompts_hash", "x"),
        ("calibration_prompts", 8),
    ],
)
def test_each_row_meets_the_baseline_of_its_own_setting(name: str, value: object) -> None:
    """Not the last one's: a row alone and the same row in a sweep have one ratio."""
    changes = {name: value} if name in ("seed", "dataset") else {"protocol": {name: value}}
    here = [scored("rtn", 1.0, noise=0.0), scored("gptq", 0.7)]
    there = [scored("rtn", 3.0, noise=0.0, **changes), scored("gptq", 0.7, **changes)]
    together = compare_rows([*here, *there], against="rtn")
    alone = [compare_rows(rows, against="rtn")[0] for rows in (here, there)]
    assert [row.ratio for row in together] == [row.ratio for row in alone]
    assert together[0].ratio.value == pytest.approx(3 * together[1].ratio.value, rel=0.2)
    assert without_baseline([*here, there[1]], against="rtn") == [there[1].record]
    table = comparison_table(
        compare_rows([*here, there[1]], against="rtn"), against="rtn", alone=[there[1].record]
    )
    assert "Left out, as rtn has no row of their setting: tiny gptq w8a8_int8." in table.legend


def test_draws_are_crossed_and_a_verdict_on_one_says_so() -> None:
    draws = range(4)
    rows = [scored("rtn", 1.0, noise=0.0, draw=d) for d in draws]
    rows += [scored("steady", 0.8, draw=d) for d in draws]
    rows += [scored("lucky", [0.5, 1.4, 1.1, 0.9][d], draw=d) for d in draws]
    by_name = {row.record.method: row for row in compare_rows(rows, against="rtn")}
    assert len(by_name) == 2  # one row a method
    assert (by_name["steady"].said, by_name["steady"].draws) == ("better", 4)
    assert by_name["lucky"].said == "not told apart"
    (one,) = compare_rows([rows[0], rows[8]], against="rtn")
    assert one.said == "better (1 calibration draw)"
    two = compare_rows([*rows[:2], *rows[4:6]], against="rtn")
    assert two[0].said in ("better (2 calibration draws)", "not told apart")
    with pytest.raises(ValueError, match="no calibration draw in common"):
        compare_rows([rows[0], rows[5]], against="rtn")


def test_identical_images_are_counted_not_subtracted() -> None:
    rows = [scored("rtn", 1.0), scored("gptq", 0.5)]
    for row, same in zip(rows, (["p0"], ["p0", "p1", "p2"]), strict=True):
        row.scores["psnr"].update(dict.fromkeys(same, math.inf))
    (found,) = compare_rows(rows, against="rtn")
    assert found.differences["psnr"].n == 5
    assert math.isfinite(found.differences["psnr"].high)
    assert found.identical == {"psnr": (3, 1)}
    text = to_markdown(comparison_table([found], against="rtn"))
    assert "(= 3, 1)" in text
    assert "∞" not in text
    assert "NaN" not in text
    rows[1].scores["psnr"].update(dict.fromkeys(IDS, math.inf))
    (found,) = compare_rows(rows, against="rtn")
    assert "psnr" not in found.differences
    assert "- (= 8, 1)" in to_markdown(comparison_table([found], against="rtn"))


def test_a_comparison_says_how_many_prompts_would_tell() -> None:
    rows = compare_rows([scored("rtn", 1.0), scored("b", 1.2, noise=0.3)], against="rtn")
    table = comparison_table(rows, against="rtn")
    (row,) = rows
    assert row.ratio is not None
    error = row.ratio.standard_error / row.ratio.value * math.sqrt(8)
    seen = (2.8 * error / math.log(row.ratio.value)) ** 2
    cell = next(c for c, k in zip(table.rows[0].cells, table.columns, strict=True)
                if k.key == "n_to_tell")  # fmt: skip
    assert cell.value == pytest.approx(seen, abs=3)
    (line,) = (x for x in table.legend if x.startswith("Power:"))
    told = int(re.search(r"a step error 10 % above is told at n = ([\d,]+)", line)[1])
    assert told == pytest.approx((2.8 * error / math.log(1.1)) ** 2, abs=3)
    assert "PSNR dB, as far as it was seen apart, at" in line
    draws = [scored(name, 1.0, draw=d) for name in ("rtn", "b") for d in range(3)]
    over = comparison_table(compare_rows(draws, against="rtn"), against="rtn")
    assert not any(x.startswith("Power:") for x in over.legend)
