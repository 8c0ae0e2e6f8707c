"""Quantize-dequantize that gradients pass through, for methods that learn what they quantize with.

Rounding counts as the identity (straight-through), clipping as itself, so that a scale, a factor or
a rotation gets the gradient of LSQ. Source: Esser et al. 2020, arXiv 1902.08153.

Legend: `...` any shape, O output features, I input features, T rows, N blocks of input features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from segquant.core.activation import (
    ActivationGrid,
    ActivationScales,
    scales_for,
    static_scales,
    steps_for,
)
from segquant.core.grids import Grid
from segquant.core.ranges import RangeRule
from segquant.core.schemes import TensorScheme
from segquant.core.weights import WeightGrid, weight_scales


def fake_quantize_ste(
    x: Tensor, *, scale: Tensor, grid: Grid, zero_point: Tensor | None = None
) -> Tensor:
    """The same values as quantize and dequantize; gradients to `x` and to `scale`."""
    zero = torch.zeros(()) if zero_point is None else zero_point
    low, high = grid.quant_min - zero, grid.quant_max - zero
    units = (x / scale).clamp(low, high)
    nearest = (
        grid.nearest_(units.detach().clone()) if zero_point is None else units.detach().round()
    )
    return (units + (nearest - units.detach())) * scale


def weight_ste(w_OI: Tensor, *, grid: WeightGrid) -> Tensor:
    """A weight on its own grid; the scale follows the weight's range and gets its gradient."""
    scales = weight_scales(w_OI, grid=grid).per_weight(grid)
    return fake_quantize_ste(
        w_OI, scale=scales.scale, grid=grid.codes, zero_point=scales.zero_point
    )


def activation_ste(x_TI: Tensor, *, grid: ActivationGrid, low_I: Tensor, high_I: Tensor) -> Tensor:
    """An input on its grid: dynamic scales from itself, static ones from the range given."""
    static = None
    if grid.scheme.calibrated:
        static = static_scales(low_I, high_I, grid=grid, sample_TI=x_TI.detach())
    return on_scales(x_TI, scales=scales_for(x_TI, grid=grid, static=static), grid=grid)


def on_scales(x_TI: Tensor, *, scales: ActivationScales, grid: ActivationGrid) -> Tensor:
    """An input on given scales, with gradients to both."""
    scale, zero = steps_for(x_TI, scales=scales, grid=grid)
    return fake_quantize_ste(x_TI, scale=scale, grid=grid.scheme.grid, zero_point=zero)


def plain_grids(
    *,
    weight: TensorScheme,
    activation: TensorScheme,
    blocks: tuple[tuple[int, ...], ...],
    rows: int,
) -> tuple[WeightGrid, ActivationGrid | None]:
    """Grids of an uncut layer; a range rule that searches is replaced by the largest magnitude."""
    weight_blocks, activation_blocks = blocks
    grid = WeightGrid(
        scheme=replace(weight, range_rule=RangeRule.amax), row_blocks=(rows,), blocks=weight_blocks
    )
    if not activation.quantized:
        return grid, None
    scheme = replace(activation, range_rule=RangeRule.amax)
    dual = (False,) * len(activation_blocks)
    return grid, ActivationGrid(scheme=scheme, blocks=activation_blocks, dual=dual)
