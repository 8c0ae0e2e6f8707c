"""Models that ask a part for its type, by its first parameter, after all its Linears are codes."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from baselines.rtn import RoundToNearest
from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.files import read_folder
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.linear import QuantLinear
from segquant.core.method_interface import QuantizationReport
from segquant.kernels import use_kernels
from segquant.kernels.modules import KernelLinear
from tests.unit.core.helpers import bits, generator


def wan() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=16,
    ).eval()


def inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=generator(0)),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 16, generator=generator(1)),
        "return_dict": False,
    }


def quantized(dtype: torch.dtype) -> tuple[nn.Module, QuantizationReport]:
    model = wan().to(dtype)
    given = {
        k: v.to(dtype) if k != "timestep" and k != "return_dict" else v for k, v in inputs().items()
    }
    with torch.no_grad(), StatisticsRecorder(model, gram=False) as recorder:
        model(**given)
    calibration = Calibration(statistics=recorder.statistics(), forwards=recorder.forwards)
    report = RoundToNearest().quantize(model, calibration=calibration, bits=bits())
    return model, report


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [False, True])
def test_wan_runs_with_every_linear_quantized(dtype: torch.dtype, kernels: bool) -> None:
    """It raised StopIteration: the embedder of the timestep had no parameter left."""
    model, report = quantized(dtype)
    assert len(report.layers_quantized) > 10
    if kernels:
        use_kernels(model, required=False)
        assert any(isinstance(module, KernelLinear) for module in model.modules())
    embedder = model.get_submodule("condition_embedder.time_embedder")
    assert not any(type(module) is nn.Linear for module in embedder.modules())
    assert next(embedder.parameters()).dtype is dtype
    given = {
        k: v.to(dtype) if k not in ("timestep", "return_dict") else v for k, v in inputs().items()
    }
    with torch.no_grad():
        (out,) = model(**given)
    assert out.dtype is dtype
    assert bool(out.isfinite().all())
    assert bool(out.any())


def test_no_state_dict_and_no_file_has_it(tmp_path: Path) -> None:
    model, report = quantized(torch.float32)
    assert not any("declared_type" in name for name in model.state_dict())
    save_quantized(model, tmp_path / "saved", report)
    tensors, _ = read_folder(tmp_path / "saved", kind="quantized denoiser")
    assert not any("declared_type" in name for name in tensors)
    loaded, _ = load_quantized(wan(), tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs())[0], model(**inputs())[0])


@pytest.mark.parametrize("assign", [False, True])
def test_it_stays_through_copies_and_state_dicts(assign: bool) -> None:
    model, _ = quantized(torch.float32)
    name = "condition_embedder.time_embedder.linear_1"
    copied = copy.deepcopy(model)
    keys = copied.load_state_dict(model.state_dict(), strict=True, assign=assign)
    assert not keys.missing_keys + keys.unexpected_keys
    held = io.BytesIO()
    torch.save(copied.get_submodule(name), held)
    held.seek(0)
    layer = torch.load(held, weights_only=False)
    assert isinstance(layer, QuantLinear)
    (parameter,) = layer.parameters()
    assert (parameter.numel(), parameter.requires_grad) == (0, False)
    assert next(layer.bfloat16().parameters()).dtype is torch.bfloat16
    assert "declared_type" not in layer.state_dict()
