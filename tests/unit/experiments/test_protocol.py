"""What a record says of a denoiser as a whole."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from baselines.rtn import RoundToNearest
from experiments.cell.protocol_fields import attention_backend, coverage, stored_bytes
from experiments.cell.quantized_denoiser import flops_fraction
from segquant.core.other_weights import count_weights
from tests.unit.core.helpers import One, bits, calibrate, correlated


def test_what_is_no_linear_counts_in_16_bit() -> None:
    """A UNet whose convolutions hold most of the weights is not small for its Linears' sake."""
    model = One(nn.Linear(8, 4))
    model.conv = nn.Conv1d(1, 3, 3)
    calibration = calibrate(model, [correlated(32, 8, seed=0)])
    report = RoundToNearest().quantize(copy.deepcopy(model), calibration=calibration, bits=bits())
    assert 8 * 4 <= report.weight_bytes < 8 * 4 * 2
    other = 4 + 3 * 3 + 3
    assert stored_bytes(count_weights(model), report) == report.weight_bytes + 2 * other
    said = coverage(count_weights(model), report)
    assert said["linear_weights_quantized_fraction"] == 1
    assert said["denoiser_weights_quantized_fraction"] == 32 / (32 + other)


def test_flops_are_weights_by_the_rows_that_went_through() -> None:
    """A large layer that runs once a step, as AdaLN's, holds many weights and does little work."""
    report: Any = SimpleNamespace(layers_quantized=[{"name": "ff"}])
    sizes = {"ff": 100, "adaln": 300, "never": 50}
    assert flops_fraction(report, sizes=sizes, rows={"ff": 30, "adaln": 1}) == 3000 / 3300
    assert flops_fraction(report, sizes=sizes, rows={}) is None


def test_the_attention_that_was_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSERS_ATTN_BACKEND", raising=False)
    assert attention_backend()["backend"] == "native"
    assert "math" in attention_backend()["scaled_dot_product_kernels"]
    monkeypatch.setenv("DIFFUSERS_ATTN_BACKEND", "flash")
    assert attention_backend()["backend"] == "flash"
