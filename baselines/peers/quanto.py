"""optimum-quanto, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.peers.library import Int8WeightsOnly
from segquant.core import Bits


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(denoiser, weights=qint8, include=list(chosen))
    freeze(denoiser)


@dataclass(kw_only=True)
class Quanto(Int8WeightsOnly):
    """optimum-quanto's int8 weights, per output channel and symmetric.

    Through `quantize(..., weights=qint8, include=...)` and `freeze` on the same Linears as every
    other row. Source: the library (optimum-quanto 0.2.7), its defaults; nothing is calibrated.
    Left out: quantized activations, which run but are no bits of any other row: the library then
    quantizes outputs as well as inputs, to scales that are running means (momentum 0.9); its fp8
    weights, which run too, are per channel, and no bits have them.
    Cost: none beyond the model.
    """

    library = "optimum-quanto"
    module = "optimum.quanto"
    extra = "optimum-quanto"
    replace_layers = staticmethod(_replace)
    elements = ("optimum-quanto's own modules and defaults",)
    left_out = ("quantized activations",)
