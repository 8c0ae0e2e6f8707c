"""Weights on a grid: which scale belongs to which row and block, codes, and the way back.

Legend: O output features, I input features, P blocks of rows (output segments),
N blocks of input features, R rows of scales: P at per_tensor granularity, O otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.core.blocks import (
    block_max,
    block_min,
    block_power,
    block_sum,
    expand_blocks,
    expand_rows,
)
from segquant.core.floats import (
    FOUR_OVER_SIX,
    FloatGrid,
    ScaleRule,
    e4m3_block_scales,
    e8m0_block_scales,
    nvfp4_tensor_scale,
)
from segquant.core.grids import (
    Grid,
    asymmetric_scale,
    dequantize,
    power_scale,
    quantize,
    symmetric_scale,
)
from segquant.core.ranges import RangeRule, block_tails, least_error, tails
from segquant.core.schemes import Granularity, NumberFormat, TensorScheme


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """How the weight of one layer is cut and put on its grid."""

    scheme: TensorScheme
    row_blocks: tuple[int, ...]  # sizes along the output features
    blocks: tuple[int, ...]  # sizes along the input features

    @property
    def codes(self) -> Grid:
        return self.scheme.grid

    @property
    def scale_rows(self) -> tuple[int, ...]:
        """How many output features each row of scales covers."""
        if self.scheme.granularity is Granularity.per_tensor:
            return self.row_blocks
        return (1,) * sum(self.row_blocks)


@dataclass(frozen=True, kw_only=True)
class WeightScales:
    """Steps [R, N] and, on an asymmetric grid, zero points [R, N]."""

    scale: Tensor
    zero_point: Tensor | None = None

    def per_row(self, grid: WeightGrid) -> WeightScales:
        """The same with one row per output feature (or one for all)."""
        zero_point = (
            None if self.zero_point is None else expand_rows(self.zero_point, grid.scale_rows)
        )
        return WeightScales(scale=expand_rows(self.scale, grid.scale_rows), zero_point=zero_point)

    def per_weight(self, grid: WeightGrid) -> WeightScales:
        """The same, broadcastable against the weight [O, I]."""
        rows = self.per_row(grid)
        zero_point = (
            None if rows.zero_point is None else expand_blocks(rows.zero_point, grid.blocks)
        )
        return WeightScales(scale=expand_blocks(rows.scale, grid.blocks), zero_point=zero_point)


def weight_scales(w_OI: Tensor, *, grid: WeightGrid) -> WeightScales:
    """Steps that reach each block of rows and of input features, as far as the range rule says.

    A codebook's are the blocks' root mean squares.
    """
    if grid.scheme.by_power:
        return WeightScales(scale=power_scale(block_power(w_OI, grid.blocks)))
    if grid.scheme.microscaled:
        return WeightScales(scale=microscales(w_OI, blocks=grid.blocks, scheme=grid.scheme))
    low_ON, high_ON = block_min(w_OI, grid.blocks), block_max(w_OI, grid.blocks)
    if grid.scheme.range_rule is RangeRule.percentile:
        return _scales(*_tails(w_OI, grid=grid), grid=grid)
    low, high = low_ON, high_ON
    if grid.scheme.granularity is Granularity.per_tensor:
        low, high = block_min(low_ON.T, grid.row_blocks).T, block_max(high_ON.T, grid.row_blocks).T
    if grid.scheme.range_rule is RangeRule.mse:

        def error(low: Tensor, high: Tensor) -> Tensor:
            scales = _scales(low, high, grid=grid)
            codes_OI = quantize_weight(w_OI, scales=scales, grid=grid)
            wrong_OI = dequantize_weight(codes_OI, scales=scales, grid=grid) - w_OI
            error_ON = block_sum(wrong_OI.square_(), grid.blocks)
            return block_sum(error_ON.T, grid.scale_rows).T

        low, high = least_error(low, high, error=error)
    return _scales(low, high, grid=grid)


def _scales(low_RN: Tensor, high_RN: Tensor, *, grid: WeightGrid) -> WeightScales:
    if grid.scheme.symmetric:
        return WeightScales(scale=symmetric_scale((-low_RN).maximum(high_RN), grid=grid.codes))
    scale, zero_point = asymmetric_scale(low_RN, high_RN, grid=grid.codes)
    return WeightScales(scale=scale, zero_point=zero_point)


def _tails(w_OI: Tensor, *, grid: WeightGrid) -> tuple[Tensor, Tensor]:
    percentile = grid.scheme.range_percentile
    if grid.scheme.granularity is Granularity.per_tensor:
        rows = torch.split_with_sizes(w_OI, list(grid.row_blocks))
        ends = [block_tails(part, grid.blocks, percentile=percentile) for part in rows]
        return torch.stack([low for low, _ in ends]), torch.stack([high for _, high in ends])
    parts = torch.split_with_sizes(w_OI, list(grid.blocks), -1)
    ends = [tails(part, percentile=percentile) for part in parts]
    return torch.stack([low for low, _ in ends], -1), torch.stack([high for _, high in ends], -1)


def quantize_weight(w_OI: Tensor, *, scales: WeightScales, grid: WeightGrid) -> Tensor:
    """Codes to nearest, float32 [O, I]."""
    wide = scales.per_weight(grid)
    return quantize(w_OI, scale=wide.scale, zero_point=wide.zero_point, grid=grid.codes)


def dequantize_weight(codes_OI: Tensor, *, scales: WeightScales, grid: WeightGrid) -> Tensor:
    """Real values of codes, float32 [O, I]."""
    wide = scales.per_weight(grid)
    return dequantize(codes_OI, scale=wide.scale, zero_point=wide.zero_point)


def fake_quantize_weight(w_OI: Tensor, *, grid: WeightGrid) -> Tensor:
    """The nearest values on the weight's own grid, float32."""
    scales = weight_scales(w_OI, grid=grid)
    return dequantize_weight(
        quantize_weight(w_OI, scales=scales, grid=grid), scales=scales, grid=grid
    )


def microscales(
    x_I: Tensor,
    *,
    blocks: tuple[int, ...],
    scheme: TensorScheme,
    tensor_scale: Tensor | None = None,
) -> Tensor:
    """Scales of a microscaled format's blocks, float32 [..., I] -> [..., N].

    Args:
        tensor_scale: nvfp4's scale of the tensor; None takes it from the tensor itself.
    """
    amax_N = torch.maximum(-block_min(x_I, blocks), block_max(x_I, blocks)).float()
    if scheme.number_format is not NumberFormat.nvfp4:
        assert isinstance(scheme.grid, FloatGrid)
        return e8m0_block_scales(amax_N, grid=scheme.grid, rounding=scheme.scale_rounding)
    outer_scale = tensor_scale
    if outer_scale is None:
        outer_scale = nvfp4_tensor_scale(amax_N.amax(), rule=scheme.scale_rule)
    six_N = e4m3_block_scales(amax_N, tensor_scale=outer_scale)
    if scheme.scale_rule is ScaleRule.amax:
        return six_N
    four_N = e4m3_block_scales(amax_N * FOUR_OVER_SIX, tensor_scale=outer_scale)
    errors = [_block_error(x_I, scale_N, blocks, grid=scheme.grid) for scale_N in (six_N, four_N)]
    return torch.where(errors[1] < errors[0], four_N, six_N)


@torch.no_grad()
def _block_error(x_I: Tensor, scale_N: Tensor, blocks: tuple[int, ...], *, grid: Grid) -> Tensor:
    """Squared error of each block on these scales, to nearest."""
    scale = expand_blocks(scale_N, blocks)
    wrong = dequantize(quantize(x_I, scale=scale, grid=grid), scale=scale).sub_(x_I)
    return block_sum(wrong.square_(), blocks)
