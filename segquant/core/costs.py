"""What a quantized layer takes: stored bits, and products beyond a plain Linear's."""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.core.layer import QuantizedLayer
from segquant.core.linear import QuantLinear
from segquant.core.schemes import UNQUANTIZED_BITS
from segquant.core.transforms import is_stated_by_size

BITS_OF_SCALE = 32
BITS_OF_EXPONENT = 2  # of a power of two among four


def stored_bits(quant: QuantLinear, entry: QuantizedLayer, *, rotation: bool = True) -> int:
    """Bits of codes, scales, zero points, smoothing, order, rotation and low-rank factors.

    Args:
        rotation: false where another layer that reads the same input is charged for it.
    """
    scheme = quant.spec.weight
    bits = quant.in_features * quant.out_features * scheme.num_bits
    bits += quant.weight_scale.numel() * scheme.scale_bits + scheme.tensor_scale_bits
    if quant.weight_zero_point is not None:
        bits += quant.weight_zero_point.numel() * scheme.num_bits
    for exact in (
        quant.smoothing,
        quant.activation_scale,
        quant.activation_negative_scale,
        quant.activation_zero_point,
        quant.input_shift,
        quant.input_scale,
        quant.row_factors,
    ):
        bits += 0 if exact is None else exact.numel() * BITS_OF_SCALE
    bits += index_bits(quant.in_features) if quant.spec.input_permuted else 0
    bits += 0 if quant.input_power is None else quant.in_features * BITS_OF_EXPONENT
    if rotation and quant.input_rotation is not None:
        bits += _rotation_bits(quant, quant.input_rotation)
    return bits + sum(entry.low_rank_parameters) * UNQUANTIZED_BITS


def index_bits(features: int) -> int:
    """Of a permutation: each place names a channel."""
    return features * (features - 1).bit_length()


def _rotation_bits(quant: QuantLinear, rotation_NBB: Tensor) -> int:
    """Learned numbers in 16 bit; of Hadamard blocks the signs, where there are any."""
    if not quant.spec.rotation_hadamard:
        return rotation_NBB.numel() * UNQUANTIZED_BITS
    return 0 if is_stated_by_size(rotation_NBB) else quant.in_features


def extra_macs_per_row(quant: QuantLinear, entry: QuantizedLayer, *, rotation: bool = True) -> int:
    """Products beyond a plain Linear's: DualScale does its segments twice, low rank adds some.

    A Hadamard rotation's additions are counted as if they were products: log2 B of each channel,
    for Sylvester's matrix and for the regular one, whose 4 x 4 factor takes 8 additions too.

    Args:
        rotation: false where another layer that reads the same input is charged for it.
    """
    pairs = zip(entry.input_segments, entry.dual_scale, strict=True)
    extra = sum(size for size, dual in pairs if dual) * quant.out_features
    down, up = entry.low_rank_parameters
    # A branch per segment is read by its own smoothing vector alone.
    readings = 1 if entry.low_rank_budget != "iso" else max(1, entry.smoothing_vectors)
    if rotation and quant.input_rotation is not None:
        size = quant.input_rotation.shape[-1]
        per_channel = size.bit_length() - 1 if quant.spec.rotation_hadamard else size
        extra += quant.in_features * per_channel
    return extra + down * readings + up


def rotated_alike(one: QuantLinear, other: QuantLinear) -> bool:
    """Whether two layers turn an input by the same numbers: turned once, it serves both."""
    mine, theirs = one.input_rotation, other.input_rotation
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return False
    before = ("input_shift", "input_scale", "input_permutation")
    alike = all(_equal(getattr(one, name), getattr(other, name)) for name in before)
    return alike and torch.equal(mine, theirs)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)
