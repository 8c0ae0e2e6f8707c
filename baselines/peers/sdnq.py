"""SDNQ, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.peers.library import Int8WeightsOnly
from segquant.core import Bits
from segquant.core.plain_linears import linear_layers


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from sdnq import sdnq_post_load_quant

    others = [name for name in linear_layers(denoiser) if name not in chosen]
    sdnq_post_load_quant(
        denoiser,
        weights_dtype="int8",
        group_size=-1,
        use_quantized_matmul=False,
        minimum_allowed_numel=0,
        minimum_allowed_channel_size=0,
        add_skip_keys=False,
        modules_to_not_convert=others,
    )


@dataclass(kw_only=True)
class Sdnq(Int8WeightsOnly):
    """SDNQ's int8 weights, one scale per output channel.

    Through `sdnq_post_load_quant` with `weights_dtype="int8"` and without groups, SVD or rotation.
    Source: the library (SDNQ 0.2.8, GPL-3.0: called, not copied); nothing is calibrated.
    Left out: its groups, SVD and Hadamard options; products in int8.
    Cost: none beyond the model.
    """

    library = "SDNQ"
    module = "sdnq"
    extra = "sdnq"
    replace_layers = staticmethod(_replace)
    elements = ("SDNQ's own modules",)
    left_out = ("groups, SVD and Hadamard options", "products in int8")
