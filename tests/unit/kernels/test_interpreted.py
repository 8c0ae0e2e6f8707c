"""The Triton kernels in Triton's interpreter, against the exact product, bit for bit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from segquant.kernels import ActivationCode, quantized_linear
from tests.unit.kernels.cases import inputs, layer
from tests.unit.kernels.interpreted import CASES, branch_rounding, compare, register

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
    by_case: dict[str, Any] = json.loads(made.stdout)
    return by_case


@pytest.mark.parametrize("name", list(CASES))
def test_the_kernel_computes_the_reference(name: str) -> None:
    result = results()[name]
    near = result.get("rounded") or result["error"] <= TOLERANCE.get(name, 0.0)
    assert result["exact"] or near, result


@pytest.mark.parametrize("field", ["weight_scale_SN", "bias_N", "up_NR"])
def test_the_roundings_of_a_low_rank_sum_hide_no_fault(field: str) -> None:
    """A scale, bias or factor off by one in 2^18 is further away than another order of the sum."""
    x = inputs("gelu", 21, 64)
    packed = layer(x, 50, codes=[ActivationCode.dual], rank=5, output=(20, 30))
    rounding = branch_rounding(x, packed)
    right = quantized_linear(x, packed)
    assert compare(right, right, rounding=rounding)["rounded"]
    faulty = replace(packed, **{field: getattr(packed, field) * (1 + 2.0**-18)})
    assert not compare(quantized_linear(x, faulty), right, rounding=rounding)["rounded"]
    plain = layer(x, 50, codes=[ActivationCode.dual])
    assert branch_rounding(x, plain) is None, "without a branch the bits are equal"
