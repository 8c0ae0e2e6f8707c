"""Grids: codes, scales, and the way back; integers here, others in `floats` and `lloyd_max`.

A scale is the real value of one step: `x ~ scale * (code - zero_point)`. Scales are float32 always:
in float16 the step of a small tensor underflows and its reciprocal overflows.

A code is a grid value in units of the scale: an integer, a small float's value, or a level.

Legend: `...` any shape; scales and zero points broadcast against the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.core.floats import SMALLEST_RANGE, FloatGrid
from segquant.core.lloyd_max import CodebookGrid


@dataclass(frozen=True)
class IntGrid:
    """The codes of a grid, both ends included."""

    quant_min: int
    quant_max: int

    def nearest_(self, x: Tensor) -> Tensor:
        """The nearest code, ties to even; `x` is overwritten."""
        return x.round_().clamp_(self.quant_min, self.quant_max)

    def store(self, values: Tensor) -> Tensor:
        """Codes as the smallest signed integers that hold them."""
        return values.to(torch.int8 if self.quant_max < 2**7 else torch.int16)

    def restore(self, codes: Tensor) -> Tensor:
        """Codes as float32; the inverse of `store`."""
        return codes.float()


Grid = IntGrid | FloatGrid | CodebookGrid


def int_grid(num_bits: int) -> IntGrid:
    """Full two's complement, [-2^(b-1), 2^(b-1) - 1]: [-128, 127] for 8 bits.

    A symmetric scale divides by `quant_max`, so that the code `quant_min` is used only by values
    below -amax. Source: SegQuant (arXiv 2507.14811), the notation of section 3.
    """
    half: int = 2 ** (num_bits - 1)
    return IntGrid(-half, half - 1)


def symmetric_scale(amax: Tensor, *, grid: Grid) -> Tensor:
    """Step of the symmetric grid that reaches `amax`; 1 where there is nothing to reach."""
    return _step(amax.float(), grid.quant_max)


def power_scale(power: Tensor) -> Tensor:
    """Scale of a codebook for values of this mean square; next to nothing where they are zero."""
    return power.float().sqrt().clamp(min=SMALLEST_RANGE)


def dual_scales(
    negative_amax: Tensor, positive_amax: Tensor, *, grid: Grid
) -> tuple[Tensor, Tensor]:
    """DualScale: a step for the negative values and one for the positive ones.

    Each sign gets all the codes it has: |quant_min| below zero, quant_max above.
    Source: SegQuant (arXiv 2507.14811), section 3.3. The paper writes quant_max for both signs;
    the authors' code divides by |quant_min| below zero, which is finer by 1/128 at 8 bits and is
    what is done here. A float grid reaches as far below zero as above.
    """
    negative = _step(negative_amax.float(), -grid.quant_min)
    return negative, _step(positive_amax.float(), grid.quant_max)


def by_sign(x: Tensor, *, negative: Tensor, positive: Tensor) -> Tensor:
    """The step of each value under DualScale: `negative` below zero, else `positive`.

    On a CPU `torch.where` branches on every element: on inputs of both signs it takes as long as
    the layer's product. Products with exact ones and zeros choose the same values in a third.
    """
    if x.device.type != "cpu":
        return torch.where(x < 0, negative, positive)
    below = x.sign().clamp_(max=0)  # -1 or 0
    return (below + 1) * positive - below * negative


def asymmetric_scale(low: Tensor, high: Tensor, *, grid: Grid) -> tuple[Tensor, Tensor]:
    """Step and zero point (an integer in float32) of the grid over [min(low, 0), max(high, 0)]."""
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = _step(high - low, grid.quant_max - grid.quant_min)
    zero_point = (grid.quant_min - low / scale).round().clamp(grid.quant_min, grid.quant_max)
    return scale, zero_point


def quantize(x: Tensor, *, scale: Tensor, grid: Grid, zero_point: Tensor | None = None) -> Tensor:
    """Codes as float32; ties go to even. `x` is left as it is."""
    units = x.float() / scale
    if zero_point is None:
        return grid.nearest_(units)
    # Rounded before the (integer) zero point is added: ties stay where they are without one.
    return units.round_().add_(zero_point).clamp_(grid.quant_min, grid.quant_max)


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


def _step(reach: Tensor, steps: float) -> Tensor:
    return torch.where(reach < SMALLEST_RANGE, torch.ones_like(reach), reach / steps)
