"""Methods that run the denoiser again while it is quantized, through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
STEPS = 3  # of tests.conftest.SETTINGS: one batch of calibration prompts, a call a step


@pytest.mark.parametrize("family", ["tiny_mmdit", "tiny_unet"])
def test_sequential_gptq_states_its_forwards(
    segbench: Segbench, small: Small, tmp_path: Path, family: str
) -> None:
    arguments = small(family, "bits=w4a8_int", f"out={tmp_path}")
    (parallel,) = segbench("run", *arguments, "method=gptq", "--json").records
    answer = segbench("run", *arguments, "method=gptq", "method.sequential=blocks", "--json")
    (record,) = answer.records
    assert record["status"] == "ok"
    assert parallel["calibration_forwards"] == STEPS
    # The calibration's pass, the one that keeps its inputs, one for the order, one a stage.
    extra = record["calibration_forwards"] - 2 * STEPS - 1
    assert extra > 0
    assert extra % STEPS == 0
    assert "sequential=blocks" in " ".join(record["method_elements"]["included"])
    assert record["protocol"]["method"]["sequential"] == "blocks"
    errors = [one["metrics"]["step_error"]["value"] for one in (parallel, record)]
    assert errors[0] != errors[1]


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
