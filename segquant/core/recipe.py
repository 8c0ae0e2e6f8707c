"""What is to be done to one layer: the method's recipe, the layer's segments, the run's bits."""

from __future__ import annotations

from dataclasses import dataclass, field

from segquant.core.blocks import group_blocks, padded_blocks
from segquant.core.lowrank import LowRankSettings
from segquant.core.rounding import GptqSettings, Rounding
from segquant.core.schemes import Bits, Granularity, TensorScheme
from segquant.core.segments import LayerShape
from segquant.core.sequential import Sequential
from segquant.core.signed_rounding import SignRoundSettings
from segquant.core.smoothing import Partition, SmoothingMode, SmoothingSettings


@dataclass(frozen=True, kw_only=True)
class LayerRecipe:
    """What a method does to a layer."""

    smoothing: SmoothingSettings = field(default_factory=SmoothingSettings)
    rounding: Rounding = Rounding.rtn
    gptq: GptqSettings = field(default_factory=GptqSettings)
    signround: SignRoundSettings = field(default_factory=SignRoundSettings)
    low_rank: LowRankSettings = field(default_factory=LowRankSettings)
    dual_scale: bool = False
    sequential: Sequential = Sequential.none
    fold: bool = False  # one smoothing vector for layers that read one tensor, folded where exact


def effective_shape(
    shape: LayerShape, *, bits: Bits, recipe: LayerRecipe, notes: list[str]
) -> LayerShape:
    """The shape without segments that would change nothing or that the bits leave no room for."""
    output, inputs, one_sided = shape.output, shape.input, shape.one_sided
    unsmoothed = recipe.smoothing.mode is SmoothingMode.none
    if len(output) > 1 and unsmoothed and bits.weight.granularity is not Granularity.per_tensor:
        notes.append(
            f"output segments are a no-op: {bits.weight.granularity.name} weights, no smoothing"
        )
        output = (shape.out_features,)
    for scheme in (bits.weight, bits.activation):
        size = scheme.group_size
        if len(inputs) > 1 and size is not None and any(part % size for part in inputs):
            notes.append(f"input segments {inputs} dropped: not multiples of group_size={size}")
            inputs, one_sided = (shape.in_features,), (all(one_sided),)
    return LayerShape(output=output, input=inputs, one_sided=one_sided)


def partitions(
    shape: LayerShape, *, name: str, bits: Bits, recipe: LayerRecipe, notes: list[str]
) -> list[Partition]:
    """The input segments with the blocks inside each, and where DualScale applies."""
    obstacle = no_dual_scale(bits.activation)
    dual_allowed = recipe.dual_scale and obstacle is None
    if recipe.dual_scale and any(shape.one_sided) and obstacle is not None:
        notes.append(f"dual scale is a no-op: {obstacle}")
    return [
        Partition(
            size=size,
            weight_blocks=_blocks(size, scheme=bits.weight, name=name),
            activation_blocks=_blocks(size, scheme=bits.activation, name=name),
            dual=one_sided and dual_allowed,
        )
        for size, one_sided in zip(shape.input, shape.one_sided, strict=True)
    ]


def _blocks(size: int, *, scheme: TensorScheme, name: str) -> tuple[int, ...]:
    if scheme.group_size is None or not scheme.quantized:
        return (size,)
    if scheme.microscaled:
        return padded_blocks(size, group_size=scheme.group_size)
    return group_blocks(size, group_size=scheme.group_size, layer=name)


def no_dual_scale(activation: TensorScheme) -> str | None:
    """Why DualScale changes nothing at these activations, or None."""
    if not activation.quantized:
        return "activations in 16 bit"
    if activation.microscaled:
        return f"a block of {activation.number_format.name} has one scale"
    if activation.by_power:
        return f"a row of {activation.number_format.name} has one scale, its root mean square"
    return None if activation.symmetric else "asymmetric activations"
