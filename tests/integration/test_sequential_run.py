"""Methods that run the denoiser again while it is quantized, through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
STEPS = 3  # of tests.conftest.SETTINGS: one batch of calibration prompts, a call a step
PASS = 4 * STEPS  # four calibration prompts, run in four parts


@pytest.mark.parametrize("family", ["tiny_mmdit", "tiny_unet"])
def test_sequential_gptq_states_its_forwards(
    segbench: Segbench, small: Small, tmp_path: Path, family: str
) -> None:
    arguments = small(family, "bits=w4a8_int", f"out={tmp_path}")
    (parallel,) = segbench("run", *arguments, "method=gptq", "--json").records
    answer = segbench("run", *arguments, "method=gptq", "method.sequential=blocks", "--json")
    (record,) = answer.records
    assert record["status"] == "ok"
    # One forward for the memory plan, and the calibration's pass.
    assert parallel["calibration_forwards"] == 1 + PASS
    # The pass that keeps the inputs, one forward for the order, a pass for every stage.
    extra = record["calibration_forwards"] - parallel["calibration_forwards"] - STEPS - 1
    assert extra > 0
    assert extra % STEPS == 0
    assert "sequential=blocks" in " ".join(record["method_elements"]["included"])
    assert record["protocol"]["method"]["sequential"] == "blocks"
    errors = [one["metrics"]["step_error"]["value"] for one in (parallel, record)]
    assert errors[0] != errors[1]


def test_a_memory_budget_takes_more_passes_and_changes_no_result(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    errors, forwards = [], []
    for budget in ("null", "0.005"):
        arguments = small("tiny_mmdit", "method=gptq", f"out={tmp_path / budget}")
        answer = segbench("run", *arguments, f"statistics_gigabytes={budget}", "--json")
        (record,) = answer.records
        assert record["status"] == "ok", record["reason"]
        errors.append(record["metrics"]["step_error"]["value"])
        forwards.append(record["calibration_forwards"])
        assert "statistics of" in answer.err
    assert errors[0] == errors[1]
    assert forwards[0] == 1 + PASS
    assert forwards[1] > forwards[0]
    assert forwards[1] % PASS == 1


def test_inputs_above_the_cap_fail_the_cell_and_say_what_to_do(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    arguments = small("tiny_mmdit", "method=segquant_g", f"out={tmp_path}")
    more = ("method.sequential=inputs", "replay_gigabytes=0.00001")
    answer = segbench("run", *arguments, *more, "--json")
    (record,) = answer.records
    assert answer.status == 1
    assert record["status"] == "failed"
    assert "above replay_gigabytes=1e-05; raise replay_gigabytes" in record["reason"]
    kept = [path.parent.parent.name for path in tmp_path.rglob("batch*.safetensors")]
    assert "calibration_inputs" not in kept
    refused = segbench("run", *arguments, "replay_gigabytes=0")
    assert refused.status == 2
    assert "replay_gigabytes=0; give a number above 0" in refused.err
