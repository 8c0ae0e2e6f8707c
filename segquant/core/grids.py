"""Integer grids: codes, scales, and the way back.

A scale is the real value of one step: `x ~ scale * (code - zero_point)`. Scales are float32 always:
in float16 the step of a small tensor underflows and its reciprocal overflows.

Legend: `...` any shape; scales and zero points broadcast against the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A range below this is taken as zero: its step would leave float32's normal numbers.
SMALLEST_RANGE = 2.0**-100


@dataclass(frozen=True)
class IntGrid:
    """The codes of a grid, both ends included."""

    quant_min: int
    quant_max: int


def int_grid(num_bits: int) -> IntGrid:
    """Full two's complement, [-2^(b-1), 2^(b-1) - 1]: [-128, 127] for 8 bits.

    A symmetric scale divides by `quant_max`, so that the code `quant_min` is used only by values
    below -amax. Source: SegQuant (arXiv 2507.14811), the notation of section 3.
    """
    half: int = 2 ** (num_bits - 1)
    return IntGrid(-half, half - 1)


def symmetric_scale(amax: Tensor, *, grid: IntGrid) -> Tensor:
    """Step of the symmetric grid that reaches `amax`; 1 where there is nothing to reach."""
    return _step(amax.float(), grid.quant_max)


def dual_scales(
    negative_amax: Tensor, positive_amax: Tensor, *, grid: IntGrid
) -> tuple[Tensor, Tensor]:
    """DualScale: a step for the negative values and one for the positive ones.

    Each sign gets all the codes it has: |quant_min| below zero, quant_max above.
    Source: SegQuant (arXiv 2507.14811), section 3.3. The paper writes quant_max for both signs;
    the authors' code divides by |quant_min| below zero, which is finer by 1/128 at 8 bits and is
    what is done here.
    """
    negative = _step(negative_amax.float(), -grid.quant_min)
    return negative, _step(positive_amax.float(), grid.quant_max)


def asymmetric_scale(low: Tensor, high: Tensor, *, grid: IntGrid) -> tuple[Tensor, Tensor]:
    """Step and zero point (an integer in float32) of the grid over [min(low, 0), max(high, 0)]."""
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = _step(high - low, grid.quant_max - grid.quant_min)
    zero_point = (grid.quant_min - low / scale).round().clamp(grid.quant_min, grid.quant_max)
    return scale, zero_point


def quantize(
    x: Tensor, *, scale: Tensor, grid: IntGrid, zero_point: Tensor | None = None
) -> Tensor:
    """Codes as float32 integers; ties go to even. `x` is left as it is."""
    codes = (x.float() / scale).round_()
    if zero_point is not None:
        codes += zero_point
    return codes.clamp_(grid.quant_min, grid.quant_max)


def dequantize(codes: Tensor, *, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Real values of codes, in float32."""
    values = codes.float()
    return (values - zero_point) * scale if zero_point is not None else values * scale


def pack_int4(codes_OI: Tensor) -> Tensor:
    """Two codes of at most 4 bits in a byte, the even input feature in the low half."""
    if codes_OI.shape[-1] % 2:
        codes_OI = torch.nn.functional.pad(codes_OI, (0, 1))
    nibbles = codes_OI.to(torch.int16) & 0xF
    return (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: Tensor, *, in_features: int) -> Tensor:
    """Codes as int8, [O, in_features]; the inverse of `pack_int4`."""
    low, high = packed & 0xF, packed >> 4
    nibbles = torch.stack([low, high], -1).flatten(-2)[..., :in_features].to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def _step(reach: Tensor, steps: int) -> Tensor:
    return torch.where(reach < SMALLEST_RANGE, torch.ones_like(reach), reach / steps)
