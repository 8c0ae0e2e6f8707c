"""Inputs without rows, and single vectors, as nn.Linear takes them: an expert may get no token."""

from typing import Any

import pytest
import torch
from torch import nn

from segquant.core.layer import quantize_linear
from segquant.core.layer_plan import LayerPlan, quantize_planned
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.recipe import LayerRecipe
from segquant.core.schemes import Bits, NumberFormat, TensorScheme
from segquant.core.segments import LayerShape
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from segquant.core.stepwise import LayerSteps
from segquant.core.transforms import InputTransform, hadamard_blocks
from segquant.kernels import KernelLinear, pack_linear
from segquant.kernels.encode import Producer
from segquant.kernels.packed import why_not
from tests.unit.core.helpers import CHANNEL, GROUP, TENSOR, TOKEN, correlated, one, scheme, seen

FULL = LayerRecipe(
    smoothing=SmoothingSettings(mode=SmoothingMode.fixed),
    low_rank=LowRankSettings(rank=2),
    dual_scale=True,
)
CUT = LayerShape(output=(16, 32), input=(32, 32), one_sided=(False, True))
SHAPES = ((3, 64), (2, 3, 64), (0, 64), (2, 0, 64), (64,), (1, 64))
FP8 = NumberFormat.fp8_e4m3
MX = {"number_format": NumberFormat.mxfp8, "granularity": GROUP, "group_size": 32}
NV = {"number_format": NumberFormat.nvfp4, "granularity": GROUP, "group_size": 16}
ACTIVATIONS: dict[str, TensorScheme] = {
    "static": scheme(8, TENSOR),
    "static zero point": scheme(8, TENSOR, symmetric=False),
    "dynamic": scheme(8, TENSOR, dynamic=True),
    "dynamic zero point": scheme(8, TENSOR, dynamic=True, symmetric=False),
    "token": scheme(8, TOKEN, dynamic=True),
    "token zero point": scheme(8, TOKEN, dynamic=True, symmetric=False),
    "four bits a token": scheme(4, TOKEN, dynamic=True),
    "group": scheme(8, GROUP, group_size=16, dynamic=True),
    "fp8": scheme(8, TENSOR, dynamic=True, number_format=FP8),
    "mxfp8": TensorScheme(num_bits=8, dynamic=True, **MX),
    "nvfp4": TensorScheme(num_bits=4, dynamic=True, **NV),
    "16 bit": TensorScheme(num_bits=16),
}
CODED = [name for name in ACTIVATIONS if name not in ("group", "fp8", "mxfp8", "nvfp4", "16 bit")]


def check(layer: nn.Module) -> None:
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        y = layer(x)
        assert y.shape == (*shape[:-1], 48), shape
        assert bool(y.isfinite().all())
    rows = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(rows[0]), layer(rows)[0])


def made(activation: TensorScheme) -> QuantLinear:
    number_format = FP8 if activation.number_format is FP8 else NumberFormat.integer
    weight = scheme(8, CHANNEL, number_format=number_format)
    how = Bits(name="t", weight=weight, activation=activation)
    quant, _ = quantize_linear(
        one(64, 48).linear,
        name="linear",
        seen=seen(correlated(64, 64, seed=0)),
        shape=CUT,
        bits=how,
        recipe=FULL,
    )
    return quant


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_a_quantized_linear_takes_what_a_linear_takes(activation: str) -> None:
    """Dynamic per-tensor steps of no rows, and of a single vector, raised."""
    check(made(ACTIVATIONS[activation]))


@pytest.mark.parametrize("producer", list(Producer), ids=lambda p: p.name)
@pytest.mark.parametrize("activation", CODED, ids=str)
def test_and_so_does_a_layer_of_codes(activation: str, producer: Producer) -> None:
    quant = made(ACTIVATIONS[activation])
    assert why_not(quant) is None
    kernel = KernelLinear(pack_linear(quant))
    kernel.producer = producer
    check(kernel)


def plans() -> dict[str, Any]:
    signs = torch.Generator().manual_seed(0)
    blocks = hadamard_blocks(64, block_size=16, generator=signs)
    ends = torch.ones(3, 64)
    return {
        "rotated": LayerPlan(transform=InputTransform(rotation_NBB=blocks, hadamard=True)),
        "reordered": LayerPlan(
            transform=InputTransform(permutation_I=torch.arange(64, dtype=torch.int32).flip(0))
        ),
        "shifted": LayerPlan(transform=InputTransform(shift_I=ends[0], scale_I=2 * ends[0])),
        "powers": LayerPlan(power_I=2 * ends[0]),
        "steps": LayerPlan(
            steps=LayerSteps(
                timesteps=(3.0, 2.0, 1.0), low_SI=-ends, high_SI=ends, sample_SKI=ends[:, None]
            )
        ),
    }


@pytest.mark.parametrize("plan", plans(), ids=str)
def test_and_so_does_a_layer_with_a_plan_of_its_own(plan: str) -> None:
    quant, _ = quantize_planned(
        one(64, 48).linear,
        name="linear",
        seen=seen(correlated(64, 64, seed=0)),
        shape=LayerShape(output=(48,), input=(64,), one_sided=(False,)),
        plan=plans()[plan],
        bits=Bits(name="t", weight=scheme(8, CHANNEL), activation=scheme(8, TENSOR)),
        recipe=LayerRecipe(),
    )
    check(quant)
