"""A cell's numbers do not depend on what else its sweep holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]

# What is added to the sweep, each asking the calibration for more than the cell does.
COMPANY = {
    "rows": ("method=segquant_a", "method.sample_rows=32,3000"),
    "gram and rows": ("method=rtn,gptq", "method.sample_rows=32,3000"),
    "steps, calls and the graph": ("method=rtn,qdiffusion,dmq_les", "method.sample_rows=32"),
}


def numbers(record: dict[str, Any]) -> dict[str, Any]:
    """All that was measured of a cell, to the last bit."""
    return {
        "metrics": {name: one["value"] for name, one in record["metrics"].items()},
        "layers": [one["relative_error"] for one in record["layers_quantized"]],
        "id": record["run_id"],
    }


@pytest.mark.parametrize("name", COMPANY)
def test_alone_or_inside_a_sweep(
    name: str, segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    methods, rows = COMPANY[name]
    fixed = small("tiny_mmdit", "bits=w4a8_int_tensor", "dataset.evaluation_prompts=2")
    first = f"{methods.split(',')[0]}", f"{rows.split(',')[0]}"
    (alone,) = segbench("run", *fixed, *first, f"out={tmp_path / 'alone'}", "--json").records
    sweep = segbench("run", "-m", *fixed, methods, rows, f"out={tmp_path / 'sweep'}", "--json")
    assert alone["status"] == "ok"
    assert numbers(sweep.records[0]) == numbers(alone)
    others = [numbers(record) for record in sweep.records[1:]]
    # What differs only by the rows has an effect of its own.
    assert all(other["layers"] != numbers(alone)["layers"] for other in others)
