"""What calibration costs, and whether alphas from statistics are the exhaustive search's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.smooth_search import SmoothSearch
from experiments.speed import calibration_cost as bench_calibration
from experiments.speed.plain_loop import ALPHAS, LOOPED, plain_loop
from experiments.studies import alpha_check
from segquant.core.rounding import Rounding
from tests.conftest import Answer
from tests.unit.core.helpers import bits, correlated, one

ROOT = Path(__file__).parents[2]
Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
STEPS = 3


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command measures in fresh processes, which take long to start."""
    monkeypatch.setattr(bench_calibration, "_apart", lambda function, *given: function(*given))


def test_the_command_states_both_ways(segbench: Segbench, small: Small) -> None:
    arguments = small("tiny_unet", "bits=w4a8_int", "--json")
    answer = segbench("bench-calibration", *arguments)
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert {cost["rounding"] for cost in found["costs"]} == {"rtn", "gptq"}
    for cost in found["costs"]:
        passes = 1 if cost["way"] == "statistics" else 22
        assert cost["forwards"] == passes * STEPS
        assert 0 < cost["output_error"] < 0.5
        assert cost["seconds"] > 0
    assert set(found["ratios"]) == {"rtn", "gptq"}


@pytest.mark.parametrize("rounding", LOOPED)
def test_the_loop_takes_22_passes_and_quantizes(rounding: Rounding) -> None:
    """One to trace, two for ten of the eleven candidates, one to finish."""
    model, x = one(32, 24), correlated(256, 32, seed=0, spread=1.0)
    runs = []

    def replay(denoiser: torch.nn.Module, *, calls: int | None = None) -> None:
        runs.append(denoiser(x))

    layers, passes = plain_loop(model, replay=replay, bits=bits(8, 8), rounding=rounding)
    assert len(ALPHAS) == 11
    assert passes == len(runs) == 22
    (layer,) = layers.values()
    exact = model(x)
    error = float((layer.forward(x) - exact).square().sum() / exact.square().sum())
    assert error < 1e-3
    assert layer.best in ALPHAS[:-1]


def test_the_alpha_check_on_a_small_pipeline(small: Small, zoo: Path, tmp_path: Path) -> None:
    """All rows are sampled here, so the search is the exhaustive one and nothing is above it."""
    given = [a for a in small("tiny_unet") if a.startswith(("model.", "metrics.eval", "dataset"))]
    given = [a for a in given if "calibration_prompts" not in a]
    arguments = ["--models", "tiny_unet", "--bits", "w8a8_int8", "--rows", "100000", "--prompts"]
    assert alpha_check.main([*arguments, "2", "--out", str(tmp_path), *given]) == 0
    rows = json.loads((tmp_path / "alpha_search.json").read_text())["rows"]
    assert len(rows) == 2
    for row in rows:
        # Float32 sums in another order may swap candidates whose errors are all but equal.
        assert row["max_excess"] < 1e-3
        assert row["above_tolerance"] == 0
    assert "| tiny_unet | w8a8_int8 |       100000 |" in (tmp_path / "alpha_search.md").read_text()


def test_the_committed_result_holds_the_tolerance() -> None:
    """Of `experiments.studies.alpha_check`: 256 rows are too few, the default is enough."""
    path = ROOT / "experiments" / "results" / "alpha_search.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    assert {row["model"] for row in rows} == set(alpha_check.MODELS)
    by_rows = {
        count: [row for row in rows if row["sample_rows"] == count and not row["use_gram"]]
        for count in alpha_check.ROWS
    }
    chosen = by_rows[SmoothSearch().sample_rows]
    assert len(chosen) == len(alpha_check.MODELS) * len(alpha_check.BITS)
    for row in chosen:
        assert row["max_excess"] <= alpha_check.TOLERANCE, row
    assert max(row["max_excess"] for row in by_rows[256]) > alpha_check.TOLERANCE
