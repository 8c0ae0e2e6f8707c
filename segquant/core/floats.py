"""Floating-point grids of 4 and 8 bits, and the block scales of the microscaled formats.

Values are rounded to the nearest of the grid, ties to the even mantissa, subnormals included, and
saturate: what lies beyond the largest value becomes it, never infinity.

Source: FP8 Formats for Deep Learning (arXiv 2209.05433) for e4m3 and e5m2; OCP Microscaling
Formats (MX) v1.0 for e2m1, e8m0 and the blocks of 32; NVFP4 as in NVIDIA's Blackwell libraries:
blocks of 16 with e4m3 scales, and one float32 scale per tensor.

Legend: `...` any shape, N blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

# A range below this is taken as zero: its step would leave float32's normal numbers.
SMALLEST_RANGE = 2.0**-100
E4M3_MAX = 448.0
E4M3_SMALLEST = 2.0**-9  # its smallest subnormal
E5M2_MAX = 57344.0
E2M1_MAX = 6.0
FOUR_OVER_SIX = 6.0 / 4.0  # by how much a block's scale grows where its largest value becomes 4
# The largest e4m3 scale with a neighbour 1.5 times as large on the grid: 256 and 384.
E4M3_MAX_FOUR_OVER_SIX = 256.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E8M0_LIMIT = 127


class ScaleRounding(Enum):
    """How a block's scale of the MX formats becomes a power of two."""

    floor = "floor"  # as the standard has it; the block's largest value may saturate
    ceil = "ceil"  # the least that saturates nothing; torchao's RCEIL


class ScaleRule(Enum):
    """What a block's largest value is mapped to in nvfp4."""

    amax = "amax"  # to e2m1's largest, 6
    four_over_six = "four_over_six"  # to 6 or to 4, whichever leaves the smaller squared error


class FloatKind(Enum):
    """Exponent and mantissa bits of an element."""

    e4m3 = "e4m3"
    e5m2 = "e5m2"
    e2m1 = "e2m1"


_STORED = {FloatKind.e4m3: torch.float8_e4m3fn, FloatKind.e5m2: torch.float8_e5m2}
_LARGEST = {FloatKind.e4m3: E4M3_MAX, FloatKind.e5m2: E5M2_MAX, FloatKind.e2m1: E2M1_MAX}


@dataclass(frozen=True)
class FloatGrid:
    """The values of a small float, in units of the scale."""

    kind: FloatKind

    @property
    def quant_max(self) -> float:
        return _LARGEST[self.kind]

    @property
    def quant_min(self) -> float:
        return -self.quant_max

    def nearest_(self, x: Tensor) -> Tensor:
        """The nearest of the grid's values, float32; `x` may be overwritten."""
        x = x.clamp_(self.quant_min, self.quant_max)
        if self.kind is FloatKind.e2m1:
            return _nearest_e2m1(x)
        return x.to(_STORED[self.kind]).float()

    def store(self, values: Tensor) -> Tensor:
        """Bit patterns of values on the grid, int8; of e2m1 the low four bits are meant."""
        if self.kind is not FloatKind.e2m1:
            return values.to(_STORED[self.kind]).view(torch.int8)
        table = torch.tensor(E2M1_VALUES, device=values.device)
        index = torch.searchsorted(table, values.float().abs().contiguous())
        return (index + 8 * torch.signbit(values)).to(torch.int8)

    def restore(self, codes: Tensor) -> Tensor:
        """The values of bit patterns, float32; the inverse of `store`."""
        if self.kind is not FloatKind.e2m1:
            return codes.view(_STORED[self.kind]).float()
        table = torch.tensor(E2M1_VALUES, device=codes.device)
        return torch.cat([table, -table])[(codes & 0xF).long()]


def e4m3_block_scales(amax_N: Tensor, *, tensor_scale: Tensor) -> Tensor:
    """NVFP4's block scales, times the tensor's own: what one e2m1 unit is worth, float32.

    A block that is not all zero keeps at least the smallest scale, or it would vanish.
    """
    wanted_N = amax_N.float() / E2M1_MAX / tensor_scale
    kept_N = FloatGrid(FloatKind.e4m3).nearest_(wanted_N).clamp_(min=E4M3_SMALLEST)
    return torch.where(amax_N > 0, kept_N * tensor_scale, torch.ones_like(kept_N))


def nvfp4_tensor_scale(amax: Tensor, *, rule: ScaleRule = ScaleRule.amax) -> Tensor:
    """NVFP4's second scale: the block with the largest value gets e4m3's largest.

    Under `four_over_six` it gets 256, as a scale 1.5 times as large must have room: 448 has none,
    and 256 is the largest whose 1.5-fold is on the grid. Source: arXiv 2512.02010 and its code.
    """
    reach = amax.float()
    largest = E4M3_MAX if rule is ScaleRule.amax else E4M3_MAX_FOUR_OVER_SIX
    return torch.where(reach < SMALLEST_RANGE, 1.0, reach / (E2M1_MAX * largest))


def e8m0_block_scales(
    amax_N: Tensor, *, grid: FloatGrid, rounding: ScaleRounding = ScaleRounding.floor
) -> Tensor:
    """MX block scales, powers of two: `2^(floor(log2 amax) - the elements' largest exponent)`.

    So the standard (section 6.3); values between the largest element and the next power of two
    saturate, by up to 1/8 (e4m3) or 1/4 (e2m1). With `ceil` the scale is twice that wherever
    something would, at the cost of the block's smallest values. Source of `ceil`: arXiv 2506.08027.
    """
    # frexp gives amax = m * 2^e with m in [0.5, 1): exact, without a logarithm.
    mantissa, exponent = math.frexp(grid.quant_max)
    own = torch.frexp(amax_N.float())
    exponent_N = own.exponent - exponent
    if rounding is ScaleRounding.ceil:
        exponent_N = exponent_N + (own.mantissa > mantissa)
    scale_N = torch.exp2(exponent_N.clamp(-E8M0_LIMIT + 1, E8M0_LIMIT).float())
    return torch.where(amax_N < SMALLEST_RANGE, torch.ones_like(scale_N), scale_N)


def _nearest_e2m1(x: Tensor) -> Tensor:
    """Steps of 0.5 below 2, 1 below 4, 2 above: half to even in the step is even mantissa."""
    size = x.abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return (x / step).round_() * step
