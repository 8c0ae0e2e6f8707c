"""What a quantized layer does, in the terms that other libraries' formats are made of.

Legend: O output features, I input features, N blocks of input features.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from torch import Tensor

from segquant.core.linear import QuantLinear
from segquant.core.schemes import Granularity, NumberFormat


class Beyond(Enum):
    """What a layer may do beside codes and scales; a format says which of them it has."""

    dual_scale = "DualScale: one scale for negative inputs and one for positive ones"
    input_segments = "segments of the input, each with a scale of its own"
    several_smoothings = "a smoothing vector for each segment of the output"
    smoothing = "smoothing at run time (method.fold=true takes it out where the graph allows)"
    low_rank = "a low-rank branch"
    steps = "activation scales that differ from sampling step to sampling step"
    shift = "a shift of the input"
    balance = "a scale of each input channel before all else"
    order = "another order of the input's channels"
    rotation = "a rotation of the input"
    power = "steps of input channels that are powers of two of a common one"
    zero_point = "zero points: written here for symmetric grids alone"


def beyond(layer: QuantLinear, *, known: Collection[Beyond] = ()) -> list[str]:
    """What the layer does and a format that has only `known` cannot hold."""
    spec = layer.spec
    grouped = spec.activation.granularity is Granularity.per_group
    found = {
        Beyond.dual_scale: any(spec.dual),
        Beyond.input_segments: len(spec.activation_blocks) > 1 and not grouped,
        Beyond.several_smoothings: spec.smoothing_count > 1,
        Beyond.smoothing: spec.smoothing_count == 1,
        Beyond.low_rank: spec.rank > 0,
        Beyond.steps: spec.steps > 0,
        Beyond.shift: spec.input_shift,
        Beyond.balance: spec.input_scale,
        Beyond.order: spec.input_permuted,
        Beyond.rotation: spec.rotation_blocks > 0,
        Beyond.power: spec.input_power,
        Beyond.zero_point: not (spec.weight.symmetric and spec.activation.symmetric),
    }
    return [one.value for one, there in found.items() if there and one not in known]


def is_integer(layer: QuantLinear) -> bool:
    """Whether weights and activations (where quantized) are integers of up to 8 bits."""
    schemes = (layer.spec.weight, layer.spec.activation)
    return all(s.number_format is NumberFormat.integer for s in schemes if s.quantized)


def is_e4m3(layer: QuantLinear) -> bool:
    """Whether weights and activations (where quantized) are fp8 e4m3."""
    schemes = (layer.spec.weight, layer.spec.activation)
    return all(s.number_format is NumberFormat.fp8_e4m3 for s in schemes if s.quantized)


def group_size(layer: QuantLinear) -> int | None:
    """Input features that share a weight scale: all of them, equal groups, or None for neither."""
    sizes = set(layer.spec.weight_blocks)
    return sizes.pop() if len(sizes) == 1 else None


def has_one_weight_scale(layer: QuantLinear) -> bool:
    return layer.weight_scale.numel() == 1 and layer.row_factors is None


def divisor(layer: QuantLinear) -> Tensor | None:
    """What a layer divides its input by, [I], where nothing is done to it in between."""
    balance_I = layer.input_scale
    if layer.smoothing is None:
        return balance_I
    return layer.smoothing[0] if balance_I is None else layer.smoothing[0] * balance_I


def row_scales(layer: QuantLinear) -> Tensor:
    """The weight's scale of each row and block, [O, N]; what was folded into the rows is in it."""
    sizes = layer.spec.weight_grid.scale_rows
    scale_RN = layer.weight_scale
    rows = [scale_RN[r : r + 1].expand(size, -1) for r, size in enumerate(sizes)]
    scale_ON = rows[0].new_empty(layer.out_features, scale_RN.shape[1])
    start = 0
    for row, size in zip(rows, sizes, strict=True):
        scale_ON[start : start + size] = row
        start += size
    return scale_ON if layer.row_factors is None else scale_ON * layer.row_factors[:, None]
