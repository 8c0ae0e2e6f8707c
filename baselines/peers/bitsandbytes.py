"""bitsandbytes' LLM.int8(), as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from baselines.peers.library import (
    is_int8_token,
    no_such_bits,
    not_installed,
    on_cpu,
    quantize_with,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds
from segquant.core.layer_pass import replace_module
from segquant.core.method_interface import OfThisMachine

_NEEDS_GPU = OfThisMachine(
    "bitsandbytes quantizes inputs on CUDA alone; on a CPU it multiplies dequantized weights, "
    "which is w8a16_int under another name; run on a GPU"
)


@dataclass(kw_only=True)
class BitsAndBytes:
    """LLM.int8(): int8 weights per channel, int8 inputs per token, without the outlier split.

    Through `Linear8bitLt(threshold=0)` on the same Linears as every other row.
    Source: the library (bitsandbytes 0.50); Dettmers et al. 2022, arXiv 2208.07339.
    On a CPU the library multiplies dequantized weights and leaves the inputs as they are: measured,
    its error there is that of int8 weights alone. The row needs a GPU.
    Left out: columns of outliers in 16 bit (threshold 6), which would change the row's bits; NF4.
    Cost: none beyond the model.
    """

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds()

    def unsupported(self, bits: Bits) -> str | None:
        if not is_int8_token(bits):
            return no_such_bits("bitsandbytes", bits, allowed="w8a8_int8_token")
        absent = not_installed("bitsandbytes", extra="bitsandbytes")
        if absent is None and not torch.cuda.is_available():
            return _NEEDS_GPU
        return absent

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_with(
            _replace,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits) or (_NEEDS_GPU if on_cpu(denoiser) else None),
            elements=["bitsandbytes' own modules"],
            left_out=["outlier columns in 16 bit (threshold 6)", "NF4"],
        )


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for linear in chosen.values():
        made = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=0.0,
        )
        made.weight = Int8Params(
            linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False
        )
        made.bias = linear.bias
        replace_module(denoiser, old=linear, new=made.to(linear.weight.device))
