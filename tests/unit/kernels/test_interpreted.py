"""The Triton kernels in Triton's interpreter, against the exact product, bit for bit."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from tests.unit.kernels.interpreted import CASES, register

ROOT = Path(__file__).resolve().parents[3]
register()
# The interpreter cuts bfloat16 off where a device rounds.
LAST_BIT_OF_BFLOAT16 = 2.0**-7
# exp and erf come from another library than torch's: of some codes the tie falls the other way.
LIBRARY = 2e-3
TOLERANCE = {
    "bfloat16 output": LAST_BIT_OF_BFLOAT16,
    "codes after silu": LIBRARY,
    "codes after gelu": LIBRARY,
    "codes after gelu_tanh": LIBRARY,
    "few rows after SiLU": LIBRARY,
    "fused feed-forward symmetric": LIBRARY,
    "fused feed-forward dual": LIBRARY,
}


@cache
def results() -> dict[str, Any]:
    """All cases, once, in a process where Triton interprets."""
    made = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.interpreted"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    found: dict[str, Any] = json.loads(made.stdout)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_the_kernel_computes_the_reference(name: str) -> None:
    found = results()[name]
    assert found["exact"] or found["error"] <= TOLERANCE.get(name, 0.0), found
