"""A search that over-fits its few calibration prompts says so, beforehand and in the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.records import read_record
from experiments.studies import overfit
from experiments.studies.overfit import Row, to_markdown
from experiments.studies.study import RESULTS
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
WARNING = "the search for alpha is judged on the very rows that ranges come from; with {} "

WARNED = {
    "the published search": (["method=segquant_a"], True),
    "of a baseline": (["method=smooth_search"], True),
    "held out": (["method=segquant_g", "method.held_out=true"], False),
    "no search": (["method=rtn"], False),
    "a fixed alpha": (["method=segquant_a", "method.smoothing=fixed"], False),
    "ranges of each token": (["method=segquant_a", "bits=w4a8_int"], False),
    "enough prompts": (["method=segquant_a", "dataset.calibration_prompts=32"], False),
}


@pytest.mark.parametrize("case", WARNED, ids=str)
def test_the_plan_says_it(case: str, segbench: Segbench, small: Small, tmp_path: Path) -> None:
    words, warned = WARNED[case]
    given = [word for word in words if word.startswith("dataset.")]
    prompts = [] if given else ["dataset.calibration_prompts=3"]
    arguments = small("tiny_unet", f"out={tmp_path}", *prompts, *words)
    answer = segbench("run", *arguments, "--dry-run")
    assert answer.status == 0
    assert (WARNING.format(3) in answer.err) == warned
    assert ("set method.held_out=true" in answer.err) == warned


def test_a_sweep_says_it_once_for_all_rows(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    words = ("method=rtn,segquant_a,segquant_g", "bits=w8a8_int8,w4a8_int")
    arguments = small("tiny_unet", f"out={tmp_path}", "dataset.calibration_prompts=3", *words)
    answer = segbench("run", "-m", *arguments, "--dry-run")
    (line,) = [line for line in answer.err.splitlines() if line.startswith("warning:")]
    assert "segquant_a w8a8_int8, segquant_g w8a8_int8: " in line


def test_the_record_says_it_with_numbers(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    found = {}
    for held_out in ("false", "true"):
        words = ("method=segquant_a", f"method.held_out={held_out}", f"out={tmp_path / held_out}")
        few = "dataset.calibration_prompts=4"
        answer = segbench("run", *small("tiny_unet", *words, few))
        assert answer.status == 0
        assert (WARNING.format(4) in answer.err) == (held_out == "false")
        (path,) = (tmp_path / held_out / "cells").glob("*/record.json")
        record = read_record(path)
        found[held_out] = record.protocol["search_over_fit"]
        assert all(layer["search_fit"] for layer in record.layers_quantized)
        assert found[held_out]["layers"] == len(record.layers_quantized)
    published, remedied = found["false"], found["true"]
    assert published["held_out_over_in_sample"] > remedied["held_out_over_in_sample"]
    assert published["meets_at_prompts"] > published["calibration_prompts"] == 4
    assert published["remedy"] == "method.held_out=true"
    assert remedied["remedy"] == ""
    assert remedied["held_out_over_unsmoothed"] <= 1


def test_a_small_run_of_the_study(small: Small, tmp_path: Path) -> None:
    words = [word for word in small("tiny_unet") if "prompts" not in word]
    where = ("--prompts", "2", "--out", str(tmp_path), "--store", str(tmp_path / "store"))
    overfit.main(["--models", "folder", *where, *words])
    text = (tmp_path / "overfit.md").read_text()
    assert text == to_markdown(overfit.read_csv(tmp_path / "overfit.csv"))
    assert text.count("\n| folder") == 1


def test_the_committed_table_is_what_the_committed_numbers_give() -> None:
    rows: list[Row] = overfit.read_csv(RESULTS / "overfit.csv")
    assert to_markdown(rows) == (RESULTS / "overfit.md").read_text()
    assert {(row.model, row.prompts) for row in rows} == {
        (model, prompts) for model in overfit.MODELS for prompts in overfit.PROMPTS
    }
