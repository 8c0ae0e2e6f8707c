"""Quantize-dequantize of activations: static or dynamic, by block, with or without DualScale.

Legend: `...` any leading dimensions, I input features, N blocks of input features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.core.blocks import block_max, block_min, block_power, block_sum, expand_blocks
from segquant.core.floats import nvfp4_tensor_scale
from segquant.core.grids import (
    asymmetric_scale,
    by_sign,
    dequantize,
    dual_scales,
    power_scale,
    quantize,
    symmetric_scale,
)
from segquant.core.ranges import RangeRule, block_tails, least_error, least_error_apart
from segquant.core.schemes import Granularity, TensorScheme
from segquant.core.weights import microscales


@dataclass(frozen=True, kw_only=True)
class ActivationGrid:
    """How the input of one layer is cut and put on its grid."""

    scheme: TensorScheme
    blocks: tuple[int, ...]  # sizes along the input features; each has its own scale
    dual: tuple[bool, ...]  # which blocks have a scale for either sign

    def __post_init__(self) -> None:
        assert len(self.blocks) == len(self.dual)
        assert self.scheme.symmetric or not any(self.dual), "DualScale has no zero point"
        one_scale = self.scheme.microscaled or self.scheme.by_power
        assert not (one_scale and any(self.dual)), "a block has one scale"

    @property
    def static_count(self) -> int:
        """How many scales come from the calibration: one per block, or nvfp4's of the tensor."""
        return 1 if self.scheme.microscaled else len(self.blocks)


@dataclass(frozen=True, kw_only=True)
class ActivationScales:
    """Steps per block, [..., N]; `negative` where some block has DualScale."""

    scale: Tensor
    negative: Tensor | None = None
    zero_point: Tensor | None = None


def stacked_scales(several: Sequence[ActivationScales]) -> dict[str, Tensor | None]:
    """The buffers of a layer with several sets of static scales (groups, steps), one a row."""
    negative = [scales.negative for scales in several if scales.negative is not None]
    zero_point = [scales.zero_point for scales in several if scales.zero_point is not None]
    return {
        "activation_scale": torch.stack([scales.scale for scales in several]),
        "activation_negative_scale": torch.stack(negative) if negative else None,
        "activation_zero_point": torch.stack(zero_point) if zero_point else None,
    }


def scales_from_range(low_N: Tensor, high_N: Tensor, *, grid: ActivationGrid) -> ActivationScales:
    """Steps that reach the smallest and largest value of each block."""
    codes = grid.scheme.grid
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


def static_scales(
    low_I: Tensor, high_I: Tensor, *, grid: ActivationGrid, sample_TI: Tensor | None = None
) -> ActivationScales:
    """Steps from the calibration's range of each input channel, [I] -> [N]; nvfp4's one, [1].

    Args:
        sample_TI: rows of the calibration, which every range rule but amax looks at.
    """
    if grid.scheme.microscaled:
        amax = torch.maximum(-low_I, high_I).amax()
        return ActivationScales(scale=nvfp4_tensor_scale(amax, rule=grid.scheme.scale_rule)[None])
    low_N, high_N = block_min(low_I, grid.blocks), block_max(high_I, grid.blocks)
    rule = grid.scheme.range_rule
    if rule is RangeRule.amax:
        return scales_from_range(low_N, high_N, grid=grid)
    assert sample_TI is not None, rule
    if rule is RangeRule.percentile:
        ends = block_tails(sample_TI, grid.blocks, percentile=grid.scheme.range_percentile)
        return scales_from_range(*ends, grid=grid)

    def error(low_N: Tensor, high_N: Tensor) -> Tensor:
        static = scales_from_range(low_N, high_N, grid=grid)
        wrong_TI = fake_quantize(sample_TI, grid=grid, static=static) - sample_TI
        return block_sum(wrong_TI.square_().sum(0), grid.blocks)

    if all(grid.dual):
        return scales_from_range(*least_error_apart(low_N, high_N, error=error), grid=grid)
    low, high = least_error(low_N, high_N, error=error)
    if any(grid.dual):
        apart = least_error_apart(low_N, high_N, error=error)
        dual = torch.tensor(grid.dual, device=low.device)
        low, high = torch.where(dual, apart[0], low), torch.where(dual, apart[1], high)
    return scales_from_range(low, high, grid=grid)


def dynamic_scales(
    x_I: Tensor, *, grid: ActivationGrid, tensor_scale: Tensor | None = None
) -> ActivationScales:
    """Steps from the tensor itself, [..., I] -> [..., N] (or [N] for the whole tensor at once)."""
    if grid.scheme.by_power:
        return ActivationScales(scale=power_scale(block_power(x_I, grid.blocks)))
    if grid.scheme.microscaled:
        scales = microscales(x_I, blocks=grid.blocks, scheme=grid.scheme, tensor_scale=tensor_scale)
        return ActivationScales(scale=scales)
    low, high = block_min(x_I, grid.blocks), block_max(x_I, grid.blocks)
    if grid.scheme.granularity is Granularity.per_tensor:
        low, high = _rows(low).amin(0), _rows(high).amax(0)
    return scales_from_range(low, high, grid=grid)


def _rows(value_N: Tensor) -> Tensor:
    """[..., N] -> [T, N]; a row of zeros where there is none, which reaches nothing."""
    rows_TN = value_N.reshape(-1, value_N.shape[-1])
    return rows_TN if rows_TN.shape[0] else rows_TN.new_zeros(1, rows_TN.shape[1])


def scales_for(
    x_I: Tensor, *, grid: ActivationGrid, static: ActivationScales | None
) -> ActivationScales:
    """The static scales, or the tensor's own where there are none or blocks have their own."""
    if static is not None and not grid.scheme.microscaled:
        return static
    tensor_scale = None if static is None else static.scale
    return dynamic_scales(x_I, grid=grid, tensor_scale=tensor_scale)


def steps_for(
    x_I: Tensor, *, scales: ActivationScales, grid: ActivationGrid
) -> tuple[Tensor, Tensor | None]:
    """The step of each value, under DualScale by its sign, and the zero points; they broadcast."""
    scale = expand_blocks(scales.scale, grid.blocks)
    if scales.negative is not None:
        negative = expand_blocks(scales.negative, grid.blocks)
        scale = by_sign(x_I, negative=negative, positive=scale)
    zero_N = scales.zero_point
    return scale, None if zero_N is None else expand_blocks(zero_N, grid.blocks)


def encode(
    x_I: Tensor, *, grid: ActivationGrid, static: ActivationScales | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (float32), the step of each code, and the zero points.

    `x_I` is left as it is. Steps broadcast against the codes; under DualScale they follow the sign.
    """
    x = x_I.float()
    scales = scales_for(x, grid=grid, static=static)
    scale, zero_point = steps_for(x, scales=scales, grid=grid)
    codes = quantize(x, scale=scale, grid=grid.scheme.grid, zero_point=zero_point)
    return codes, scale, zero_point


def fake_quantize(x_I: Tensor, *, grid: ActivationGrid, static: ActivationScales | None) -> Tensor:
    """The nearest values on the grid, in float32; `x_I` is left as it is."""
    codes, scale, zero_point = encode(x_I, grid=grid, static=static)
    return dequantize(codes, scale=scale, zero_point=zero_point)
