"""Every yaml in conf/bits through the real path, on one small pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from experiments.config.places import options
from tests.conftest import Answer

TOO_WIDE = "w4a4_int_group64"  # a group is wider than this pipeline's layers
Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def test_every_bits_runs(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    """Static and dynamic, integers and floats, grouped, mixed: no preset crashes or gives NaN.

    In the authors' code all W4A8 presets crash, and the static per-token ones fit one batch only.
    """
    names = [name for name in options("bits") if name != "w16a16"]
    assert {"w8a8_int8", "w8a8_fp8", "w4a4_nvfp4", "w8a8_mxfp8", "mixed_w4w8a8"} <= set(names)
    few = ("metrics.teacher_forced_prompts=2", "dataset.evaluation_prompts=2")
    arguments = small("tiny_mmdit", f"out={tmp_path}", *few)
    chosen = f"bits={','.join(names)}"
    answer = segbench("run", "-m", *arguments, "method=segquant_g", chosen, "--json")
    records = {record["bits"]: record for record in answer.records}
    assert set(records) == set(names)
    refused = records.pop(TOO_WIDE)
    assert refused["status"] == "failed"
    assert "in_features=32 is not a multiple of group_size=64; use one of" in refused["reason"]
    assert answer.status == 1
    for name, record in records.items():
        assert record["status"] == "ok", (name, record["reason"])
        error = record["metrics"]["step_error"]["value"]
        assert math.isfinite(error)
        assert 0 < error < (0.05 if name.startswith("w8") else 1.0), name
        assert record["effective_bits_per_weight"] > record["protocol"]["weight_bits"]
