"""optimum-quanto, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.peers.library import (
    is_int8_weight_only,
    no_such_bits,
    not_installed,
    quantize_with,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds


@dataclass(kw_only=True)
class Quanto:
    """optimum-quanto's int8 weights, per output channel and symmetric.

    Through `quantize(..., weights=qint8, include=...)` and `freeze` on the same Linears as every
    other row. Source: the library (optimum-quanto 0.2.7), its defaults; nothing is calibrated.
    Left out: quantized activations, which run but are no bits of any other row: the library then
    quantizes outputs as well as inputs, to scales that are running means (momentum 0.9); its fp8
    weights, which run too, are per channel, and no bits have them.
    Cost: none beyond the model.
    """

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds()

    def unsupported(self, bits: Bits) -> str | None:
        if is_int8_weight_only(bits):
            return not_installed("optimum.quanto", extra="optimum-quanto")
        return no_such_bits("optimum-quanto", bits, allowed="w8a16_int")

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_with(
            _replace,
            denoiser,
            calibration=calibration,
            bits=bits,
            unsupported=self.unsupported(bits),
            elements=["optimum-quanto's own modules and defaults"],
            left_out=["quantized activations"],
        )

    def corrector(self, *, calibration: Calibration) -> None:
        return None


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(denoiser, weights=qint8, include=list(chosen))
    freeze(denoiser)
