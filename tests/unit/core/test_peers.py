"""Against other libraries on the same tensors: torchao (extra `peers`) and scipy.

Run with `pip install -e .[peers]`; without torchao its tests are skipped and say so.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from torch import Tensor

from baselines.smoothquant import SmoothQuant
from segquant.core.floats import ScaleRounding
from segquant.core.lowrank import truncated_svd
from segquant.core.schemes import NumberFormat
from segquant.core.smoothing import smoothing_factors
from segquant.core.weights import WeightGrid, fake_quantize_weight
from tests.unit.core.helpers import GROUP, bits, calibrate, correlated, generator, one, scheme


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_smoothquant_factors_are_torchaos(alpha: float) -> None:
    smoothquant: Any = pytest.importorskip("torchao.prototype.smoothquant.core")
    model, x = one(48, 32), correlated(512, 48, seed=0, spread=1.5)
    observer = smoothquant.SmoothQuantObserver(model.linear.weight.detach(), alpha=alpha)
    for part in x.split(128):
        observer(part)
    expected, _, _ = observer.calculate_qparams()
    amax = calibrate(model, list(x.split(128))).statistics["linear"].amax
    found = smoothing_factors(amax, model.linear.weight.detach().abs().amax(0), alpha=alpha)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    quant = copy.deepcopy(model)
    method = SmoothQuant(alpha=alpha, fold=False)
    method.quantize(quant, calibration=calibrate(model, [x]), bits=bits(8, 8))
    smoothing: Tensor = quant.linear.smoothing
    torch.testing.assert_close(smoothing[0], expected, rtol=1e-5, atol=0)


def test_nvfp4_weights_are_torchaos() -> None:
    """Blocks of 16, e4m3 scales, one float32 scale for the tensor."""
    nvfp4: Any = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    w = torch.randn(64, 128, generator=generator(1)) * torch.logspace(-1, 1, 64)[:, None]
    per_tensor = nvfp4.per_tensor_amax_to_scale(w.abs().max())
    packed = nvfp4.NVFP4Tensor.to_nvfp4(w, per_tensor_scale=per_tensor)
    expected = packed.dequantize(torch.float32)
    grid = WeightGrid(
        scheme=scheme(4, GROUP, group_size=16, number_format=NumberFormat.nvfp4),
        row_blocks=(64,),
        blocks=(16,) * 8,
    )
    found = fake_quantize_weight(w, grid=grid)
    same = (found - expected).abs() <= 1e-5 * expected.abs().clamp(min=1e-6)
    # A value on a tie between two codes may go the other way by float32 rounding of its scale.
    assert float(same.float().mean()) > 0.995


@pytest.mark.parametrize(("rounding", "torchaos"), [("floor", "FLOOR"), ("ceil", "RCEIL")])
@pytest.mark.parametrize(("number_format", "num_bits"), [("mxfp4", 4), ("mxfp8", 8)])
def test_mx_weights_are_torchaos(
    number_format: str, num_bits: int, rounding: str, torchaos: str
) -> None:
    """Blocks of 32 with power-of-two scales by either rule, bit for bit."""
    mx: Any = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    w = torch.randn(64, 128, generator=generator(1)) * torch.logspace(-1, 1, 64)[:, None]
    element = torch.float4_e2m1fn_x2 if num_bits == 4 else torch.float8_e4m3fn
    mode = mx.ScaleCalculationMode[torchaos]
    expected = mx.MXTensor.to_mx(w, element, 32, mode).dequantize(torch.float32)
    grid = WeightGrid(
        scheme=scheme(
            num_bits,
            GROUP,
            group_size=32,
            number_format=number_format,
            scale_rounding=ScaleRounding(rounding),
        ),
        row_blocks=(64,),
        blocks=(32,) * 4,
    )
    assert torch.equal(fake_quantize_weight(w, grid=grid), expected)


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_low_rank_is_scipys_truncated_svd(rank: int, shape: tuple[int, int]) -> None:
    w = torch.randn(*shape, generator=generator(2)) * torch.logspace(0, -2, shape[1])
    branch = truncated_svd(w, rank=rank, dtype=torch.float64)
    left, values, right = scipy.linalg.svd(w.double().numpy(), full_matrices=False)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank]
    found = (branch.up_OR @ branch.down_RI).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6 * values[0])
    left, values, right = scipy.sparse.linalg.svds(w.double().numpy(), k=rank, random_state=0)
    np.testing.assert_allclose(found, (left * values) @ right, atol=1e-6 * values.max())


def test_the_random_sketch_is_near_scipys_best() -> None:
    """A large matrix of slowly falling spectrum: the error is the optimum's, to a percent."""
    w = torch.randn(1024, 1024, generator=generator(3)) * torch.logspace(0, -1.5, 1024)
    branch = truncated_svd(w, rank=32, dtype=torch.float64)
    values = scipy.linalg.svdvals(w.double().numpy())
    best = float(np.square(values[32:]).sum()) ** 0.5
    assert float((w.double() - branch.up_OR @ branch.down_RI).norm()) < 1.01 * best
