"""What a record says of a denoiser as a whole."""

from __future__ import annotations

import copy

from torch import nn

from baselines.rtn import RoundToNearest
from experiments.cell.protocol_fields import coverage, stored_bytes
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
