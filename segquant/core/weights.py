"""Weights on a grid: which scale belongs to which row and block, codes, and the way back.

Legend: O output features, I input features, P blocks of rows (output segments),
N blocks of input features, R rows of scales: P at per_tensor granularity, O otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segquant.core.blocks import block_max, block_min, expand_blocks, expand_rows
from segquant.core.grids import (
    IntGrid,
    asymmetric_scale,
    dequantize,
    int_grid,
    quantize,
    symmetric_scale,
)
from segquant.core.schemes import Granularity, TensorScheme


@dataclass(frozen=True, kw_only=True)
class WeightGrid:
    """How the weight of one layer is cut and put on integers."""

    scheme: TensorScheme
    row_blocks: tuple[int, ...]  # sizes along the output features
    blocks: tuple[int, ...]  # sizes along the input features

    @property
    def codes(self) -> IntGrid:
        return int_grid(self.scheme.num_bits)

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
    """Steps that reach the extremes of each block of rows and of input features."""
    low_ON, high_ON = block_min(w_OI, grid.blocks), block_max(w_OI, grid.blocks)
    if grid.scheme.granularity is Granularity.per_tensor:
        low, high = block_min(low_ON.T, grid.row_blocks).T, block_max(high_ON.T, grid.row_blocks).T
    else:
        low, high = low_ON, high_ON
    if grid.scheme.symmetric:
        return WeightScales(scale=symmetric_scale((-low).maximum(high), grid=grid.codes))
    scale, zero_point = asymmetric_scale(low, high, grid=grid.codes)
    return WeightScales(scale=scale, zero_point=zero_point)


def quantize_weight(w_OI: Tensor, *, scales: WeightScales, grid: WeightGrid) -> Tensor:
    """Codes to nearest, float32 integers [O, I]."""
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
