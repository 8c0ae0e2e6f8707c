"""Quantize-dequantize of activations: static or dynamic, by block, with or without DualScale.

Legend: `...` any leading dimensions, I input features, N blocks of input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.core.blocks import block_max, block_min, expand_blocks
from segquant.core.grids import (
    asymmetric_scale,
    dequantize,
    dual_scales,
    int_grid,
    quantize,
    symmetric_scale,
)
from segquant.core.schemes import Granularity, TensorScheme


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """How the input of one layer is cut and put on integers."""

    scheme: TensorScheme
    blocks: tuple[int, ...]  # sizes along the input features; each has its own scale
    dual: tuple[bool, ...]  # which blocks have a scale for either sign

    def __post_init__(self) -> None:
        assert len(self.blocks) == len(self.dual)
        assert self.scheme.symmetric or not any(self.dual), "DualScale has no zero point"


@dataclass(frozen=True, kw_only=True)
class ActivationScales:
    """Steps per block, [..., N]; `negative` where some block has DualScale."""

    scale: Tensor
    negative: Tensor | None = None
    zero_point: Tensor | None = None


def scales_from_range(low_N: Tensor, high_N: Tensor, *, grid: ActivationGrid) -> ActivationScales:
    """Steps that reach the smallest and largest value of each block."""
    codes = int_grid(grid.scheme.num_bits)
    if not grid.scheme.symmetric:
        scale, zero_point = asymmetric_scale(low_N, high_N, grid=codes)
        return ActivationScales(scale=scale, zero_point=zero_point)
    both = symmetric_scale(torch.maximum(-low_N, high_N), grid=codes)
    if not any(grid.dual):
        return ActivationScales(scale=both)
    negative, positive = dual_scales(-low_N.clamp(max=0), high_N.clamp(min=0), grid=codes)
    if all(grid.dual):
        return ActivationScales(scale=positive, negative=negative)
    dual = torch.tensor(grid.dual, device=both.device)
    return ActivationScales(
        scale=torch.where(dual, positive, both), negative=torch.where(dual, negative, both)
    )


def static_scales(low_I: Tensor, high_I: Tensor, *, grid: ActivationGrid) -> ActivationScales:
    """Steps from the calibration's range of each input channel, [I] -> [N]."""
    return scales_from_range(
        block_min(low_I, grid.blocks), block_max(high_I, grid.blocks), grid=grid
    )


def dynamic_scales(x_I: Tensor, *, grid: ActivationGrid) -> ActivationScales:
    """Steps from the tensor itself, [..., I] -> [..., N] (or [N] for the whole tensor at once)."""
    low, high = block_min(x_I, grid.blocks), block_max(x_I, grid.blocks)
    if grid.scheme.granularity is Granularity.per_tensor:
        low, high = low.flatten(0, -2).amin(0), high.flatten(0, -2).amax(0)
    return scales_from_range(low, high, grid=grid)


def encode(
    x_I: Tensor, *, grid: ActivationGrid, static: ActivationScales | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (float32 integers), the step of each code, and the zero points.

    `x_I` is left as it is. Steps broadcast against the codes; under DualScale they follow the sign.
    """
    x = x_I.float()
    scales = static if static is not None else dynamic_scales(x, grid=grid)
    codes = int_grid(grid.scheme.num_bits)
    scale = expand_blocks(scales.scale, grid.blocks)
    if scales.negative is not None:
        scale = torch.where(x < 0, expand_blocks(scales.negative, grid.blocks), scale)
    if scales.zero_point is None:
        return quantize(x, scale=scale, grid=codes), scale, None
    zero_point = expand_blocks(scales.zero_point, grid.blocks)
    return quantize(x, scale=scale, grid=codes, zero_point=zero_point), scale, zero_point


def fake_quantize(x_I: Tensor, *, grid: ActivationGrid, static: ActivationScales | None) -> Tensor:
    """The nearest values on the grid, in float32; `x_I` is left as it is."""
    codes, scale, zero_point = encode(x_I, grid=grid, static=static)
    return dequantize(codes, scale=scale, zero_point=zero_point)
