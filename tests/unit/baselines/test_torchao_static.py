"""torchao's static rows against float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from baselines.peers.torchao import Torchao
from experiments.config.compose import build, compose_config
from tests.unit.baselines.timed import calibrated
from tests.unit.core.helpers import power_ratio


@pytest.mark.parametrize(
    ("bits_name", "scales", "worst"),
    [("w8a8_int8", 1, 0.001), ("w8a8_int8_channel", 32, 0.001), ("w8a8_fp8", 1, 0.005)],
)
def test_static_layers_are_what_float64_says(
    bits_name: str, scales: int, worst: float, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    bits = build(compose_config(["method=fp", f"bits={bits_name}"]), method_name="fp").bits
    model, calibration = calibrated(tmp_path, features=32)
    made = copy.deepcopy(model)
    Torchao().quantize(made, calibration=calibration, bits=bits)
    layer, own = model.first, made.first
    seen = calibration.statistics["first"]
    x = seen.sample_TI[:48]
    largest = 448 if bits_name == "w8a8_fp8" else 127

    def nearest(v: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        units = v.double() / scale.double()
        if largest == 127:
            return units.round().clamp(-128, 127)
        return units.clamp(-448, 448).to(torch.float8_e4m3fn).double()

    with torch.no_grad():
        scale_O = own.weight.scale
        assert scale_O.numel() == scales
        reach = layer.weight.abs().amax(1, keepdim=True) if scales > 1 else layer.weight.abs().max()
        torch.testing.assert_close(
            scale_O, (reach / largest).reshape(scale_O.shape), rtol=0.005, atol=0
        )
        w = nearest(layer.weight, scale_O)
        # 127.5 steps are a row's largest value: it lies in the middle of two.
        assert power_ratio(own.weight.qdata.double(), w) < 1e-5
        w = own.weight.qdata.double()
        step = seen.amax.max() / largest
        wanted = (nearest(x, step) * step) @ (w * scale_O).T + layer.bias
        assert power_ratio(own(x).double(), wanted) < 1e-6
        assert power_ratio(wanted, layer(x).double()) < worst
        assert torch.equal(own(x.reshape(4, 3, 4, 32)), own(x).reshape(4, 3, 4, 32))
