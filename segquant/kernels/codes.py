"""Activation codes: ways to write an input in 8-bit integers, all for one matrix product.

Every code turns an input into one or two planes of int8 with a step each. With the weight's codes
W the layer is `sum over planes of step * (plane @ W^T)`, so a code's cost is its planes: products
of the size of the layer. What a plane is shifted by (its zero point) is a constant of the layer
for static steps and goes into the bias.

A value is multiplied by the reciprocal of its step, clamped, and rounded, ties to even, in this
order in every backend: division and contraction would move ties, and codes are to agree bit for
bit. NaN has no code. Under static steps it counts as zero; a dynamic step becomes NaN itself, and
with it the row's output.

Legend: T rows, I input features, S segments of the input, P planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from segquant.core.floats import SMALLEST_RANGE, FloatGrid, FloatKind

BYTE = 8
HALF_BYTE_RANGE = 2 ** (BYTE - 1)  # 128
WIDE_MAX = 2**BYTE - 1  # codes of one side of `dual_wide`
HIGH_STEP = 2**BYTE  # what one unit of the high plane is worth in units of the low one
HIGH_LOW_MAX = HIGH_STEP * (HALF_BYTE_RANGE - 1) + HALF_BYTE_RANGE - 1  # 32639: both planes full


class ActivationCode(Enum):
    """Member names are what a record says."""

    symmetric = "symmetric"
    zero_point = "zero_point"  # one plane, shifted: the range need not be centred on zero
    dual = "dual"  # DualScale: positive and negative values in a plane and with a step each
    dual_wide = "dual_wide"  # the same with 8 bits a side: both planes shifted by 128
    high_low = "high_low"  # a 15-bit code's high and low byte
    fp8 = "fp8"  # e4m3

    @property
    def planes(self) -> int:
        """How many products of the layer's size it takes."""
        return 2 if self in _TWO_PLANES else 1

    @property
    def integer(self) -> bool:
        return self is not ActivationCode.fp8


_TWO_PLANES = (ActivationCode.dual, ActivationCode.dual_wide, ActivationCode.high_low)


@dataclass(frozen=True, kw_only=True)
class CodeSteps:
    """Steps and zero points of the planes, [..., P]; `...` is rows under dynamic steps.

    A value is `sum over planes of step * (code - zero)`; `inverse` is what it is multiplied by
    to get codes.
    """

    step: Tensor
    inverse: Tensor
    zero: Tensor

    @property
    def shift(self) -> Tensor:
        """What the zero points add to the value of every element, [...]."""
        return -(self.step * self.zero).sum(-1)


def code_steps(
    low: Tensor, high: Tensor, *, code: ActivationCode, num_bits: int = BYTE
) -> CodeSteps:
    """Steps that reach `low` and `high`, of any (equal) shape.

    Source: DualScale is SegQuant (arXiv 2507.14811), section 3.3, with the authors' code's
    |quant_min| codes below zero; the split into two bytes and the shifted planes are ours.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    most, below = 2 ** (num_bits - 1) - 1, 2 ** (num_bits - 1)
    both = torch.maximum(-low, high)
    if code is ActivationCode.symmetric:
        return planes_of(_step(both, most))
    if code is ActivationCode.zero_point:
        step = _step(high - low, most + below)
        zero = torch.round(-below - low / step).clamp(-below, most)
        return planes_of(step, zero=zero)
    if code is ActivationCode.dual:
        return planes_of(_step(high, most), _step(-low, below))
    if code is ActivationCode.dual_wide:
        # The negative plane counts upwards from zero, so its step is negative.
        # A side without values takes the other's: a large step would cancel against the shift.
        least = SMALLEST_RANGE
        positive = _step(torch.where(high < least, -low, high), WIDE_MAX)
        negative = -_step(torch.where(-low < least, high, -low), WIDE_MAX)
        shift = torch.full_like(both, -HALF_BYTE_RANGE)
        return planes_of(positive, negative, zero=shift)
    if code is ActivationCode.high_low:
        low_step = _step(both, HIGH_LOW_MAX)
        return planes_of(HIGH_STEP * low_step, low_step)
    return planes_of(_step(both, FloatGrid(FloatKind.e4m3).quant_max))


def planes_of(*steps: Tensor, zero: Tensor | None = None) -> CodeSteps:
    """CodeSteps of the planes' own steps; `zero` is every plane's."""
    step = torch.stack(steps, -1)
    zeros = torch.zeros_like(step) if zero is None else zero[..., None].expand_as(step)
    return CodeSteps(step=step, inverse=1.0 / step, zero=zeros)


def encode_planes(
    x: Tensor,
    inverse: Tensor,
    zero: Tensor,
    *,
    code: ActivationCode,
    num_bits: int = BYTE,
    divide: bool = False,
) -> list[Tensor]:
    """The planes of a float32 tensor, int8 of its shape (float8_e4m3fn for fp8).

    Args:
        inverse: [..., P], broadcastable against x[..., None].
        zero: likewise; read for `zero_point` alone.
        divide: `inverse` holds the steps themselves. A quotient falls on a tie between two codes
            where the simulation's does, its product with a reciprocal now and then beside it.
    """
    most, below = 2 ** (num_bits - 1) - 1, 2 ** (num_bits - 1)
    first = x / inverse[..., 0] if divide else x * inverse[..., 0]
    if code is ActivationCode.symmetric:
        return [_byte(first, -below, most)]
    if code is ActivationCode.zero_point:
        shift = zero[..., 0]
        return [(_nearest(first, -below - shift, most - shift) + shift).to(torch.int8)]
    if code is ActivationCode.fp8:
        grid = FloatGrid(FloatKind.e4m3)
        bounded = first.clamp(grid.quant_min, grid.quant_max)
        return [bounded.nan_to_num(0.0).to(torch.float8_e4m3fn)]
    second = x / inverse[..., 1] if divide else x * inverse[..., 1]
    if code is ActivationCode.dual:
        return [_byte(first, 0, most), _byte(second, -below, 0)]
    if code is ActivationCode.dual_wide:
        planes = (first, second)
        return [(_nearest(units, 0, WIDE_MAX) - HALF_BYTE_RANGE).to(torch.int8) for units in planes]
    # `second` is in units of the low plane: the whole 15-bit code.
    whole = _nearest(second, -HIGH_LOW_MAX, HIGH_LOW_MAX).to(torch.int32)
    high = (whole + HALF_BYTE_RANGE) >> BYTE
    return [high.to(torch.int8), (whole - (high << BYTE)).to(torch.int8)]


def decode_planes(planes: list[Tensor], steps: CodeSteps) -> Tensor:
    """The values of codes, float32: what the product multiplies, in one piece."""
    total = torch.zeros(planes[0].shape, device=planes[0].device)
    for at, plane in enumerate(planes):
        total = total + (plane.float() - steps.zero[..., at]) * steps.step[..., at]
    return total


def _nearest(units: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    # Numbers stay numbers: as tensors they would be copied to the device, which waits for it.
    bounded = torch.clamp(units, low, high)  # type: ignore[arg-type]
    return torch.where(units == units, bounded, 0.0).round()


def _byte(units: Tensor, low: int, high: int) -> Tensor:
    return _nearest(units, low, high).to(torch.int8)


def _step(reach: Tensor, steps: float) -> Tensor:
    return torch.where(reach < SMALLEST_RANGE, torch.ones_like(reach), reach / steps)
