"""Codes where the value is born: activation functions go into the kernels on either side of them.

Two passes over a denoiser whose Linears are KernelLinears already:

- a feed-forward `Linear, GELU, Linear` with static codes in its middle: the first product applies
  the GELU and writes the second's codes, so that the wide value between them is never stored;
- an activation right in front of one KernelLinear (AdaLN's SiLU, an embedder's): it is applied on
  the way to the codes.

The integers are those of the unfused model. What lies between two roundings is float32 here, where
an unfused model in 16 bit rounds the activation's input and output; in float32 both are equal.
Left as they are: GEGLU, whose two halves meet after the product, and FLUX's single blocks, where
attention is concatenated to the GELU's output first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from segquant.kernels import operators
from segquant.kernels.codes import BYTE, ActivationCode
from segquant.kernels.door import encode_input
from segquant.kernels.encode import Encoded, Producer, Steps
from segquant.kernels.modules import KernelLinear
from segquant.kernels.packed import PackedLinear, low_rank_inner
from segquant.kernels.product import CodedProduct

# diffusers' classes that call `linear(activation(x))` and use the activation for nothing else.
BEFORE_LINEAR = {
    "AdaLayerNorm": ("silu", "linear"),
    "AdaLayerNormZero": ("silu", "linear"),
    "AdaLayerNormZeroSingle": ("silu", "linear"),
    "AdaLayerNormContinuous": ("silu", "linear"),
    "AdaLayerNormSingle": ("silu", "linear"),
    "SD35AdaLayerNormZeroX": ("silu", "linear"),
    "TimestepEmbedding": ("act", "linear_2"),
    "PixArtAlphaTextProjection": ("act_1", "linear_2"),
}
NEXT_CODES = (
    ActivationCode.symmetric,
    ActivationCode.dual,
    ActivationCode.dual_wide,
    ActivationCode.high_low,
)


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What was fused, or why not: `reason` is empty where it was."""

    layer: str  # that reads the activation's output
    producer: str
    where: str  # "product before" or "codes"
    reason: str = ""


class FusedFeedForward(nn.Module):
    """`second(gelu(first(x)))` without a value in between."""

    def __init__(self, first: KernelLinear, second: KernelLinear, *, producer: Producer) -> None:
        super().__init__()
        self.first, self.second, self.producer = first, second, producer

    def forward(self, hidden_states: Tensor) -> Tensor:
        return coded_feed_forward(
            hidden_states, self.first.packed, self.second.packed, producer=self.producer
        )


def coded_feed_forward(
    x: Tensor, first: PackedLinear, second: PackedLinear, *, producer: Producer
) -> Tensor:
    """The second layer on `producer(first(x))`, [..., I] -> [..., N] in the second's type.

    Raises:
        ValueError: the layers cannot be joined; see `why_not_joined`.
    """
    if reason := why_not_joined(first, second):
        raise ValueError(reason)
    x_TI = x.reshape(-1, x.shape[-1])
    encoded = encode_input(x_TI, first, Producer.none)
    inverse, scale = second.tensors.inverse_GPI, second.tensors.scale_GSP
    assert inverse is not None
    assert scale is not None
    codes = operators.coded_product_codes(
        CodedProduct.of(encoded, first, inner_GTR=low_rank_inner(x_TI, first)),
        producer=producer,
        next_code=second.plan.codes[0],
        next_inverse_PN=inverse[0],
    )
    between = Encoded(codes=codes, scale_GSPT=scale[..., None], shift_GST=None, rows=x_TI.shape[0])
    output_TN = operators.coded_product(CodedProduct.of(between, second), dtype=second.dtype)
    return output_TN.view(*x.shape[:-1], second.out_features)


def why_not_joined(first: PackedLinear, second: PackedLinear) -> str | None:
    """Why the first product cannot write the second's codes, or None."""
    plan = second.plan
    if first.out_features != plan.in_features:
        return f"{first.out_features} features out, {plan.in_features} in"
    if not (first.plan.integer and plan.integer):
        return "codes in fp8"
    if first.packed:
        return "the kernel for 4-bit weights writes values only"
    if plan.steps is not Steps.static:
        return f"steps by {plan.steps.name}: they are known after the whole row only"
    if len(plan.segments) > 1 or plan.groups > 1:
        return "several input segments or smoothing vectors"
    if plan.codes[0] not in NEXT_CODES or plan.num_bits != BYTE:
        return f"the product writes no {plan.name()} codes"
    if second.down_RI is not None:
        return "a low-rank branch reads the value itself"
    return None


def fuse_activations(denoiser: nn.Module) -> list[Fused]:
    """Both passes, in place; every place that was looked at."""
    named = dict(denoiser.named_modules())
    places: list[Fused] = []
    for name, module in named.items():
        if type(module).__name__ == "FeedForward":
            places += _join(name, module)
    for name, module in named.items():
        if (place := BEFORE_LINEAR.get(type(module).__name__)) is not None:
            places += _absorb(name, module, *place)
    return places


def _join(name: str, module: Any) -> list[Fused]:
    parts = [part for part in module.net if not isinstance(part, nn.Dropout)]
    if len(parts) != 2 or type(parts[0]).__name__ != "GELU":
        return []
    first, second = parts[0].proj, parts[1]
    producer = Producer.gelu_tanh if parts[0].approximate == "tanh" else Producer.gelu
    at = f"{name}.net.{list(module.net).index(second)}"
    kernels = isinstance(first, KernelLinear) and isinstance(second, KernelLinear)
    reason = "a layer beside it has no kernel"
    if kernels:
        reason = why_not_joined(first.packed, second.packed) or ""
    if not reason:
        module.net = nn.ModuleList([FusedFeedForward(first, second, producer=producer)])
    return [Fused(layer=at, producer=producer.name, where="product before", reason=reason)]


def _absorb(name: str, module: Any, activation: str, linear: str) -> list[Fused]:
    act, layer = getattr(module, activation, None), getattr(module, linear, None)
    if type(act) is not nn.SiLU or not isinstance(layer, KernelLinear):
        return []
    setattr(module, activation, nn.Identity())
    layer.producer = Producer.silu
    return [Fused(layer=f"{name}.{linear}", producer=Producer.silu.name, where="codes")]


def summarize_fused(places: list[Fused]) -> str:
    """One line for a record."""
    done: dict[str, int] = {}
    for place in places:
        what = f"{place.producer} in the {place.where}"
        text = f"not fused, {what}: {place.reason}" if place.reason else what
        done[text] = done.get(text, 0) + 1
    return "; ".join(f"{text} ({count})" for text, count in done.items()) or "nothing to fuse"
