"""optimum-quanto, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.peer import (
    is_int8_weight_only,
    library_report,
    no_such_bits,
    not_installed,
    split_layers,
    taken,
)
from segquant.core import Bits, Calibration, QuantizationReport, StatisticsNeeds
from segquant.core.statistics import linear_layers


@dataclass(kw_only=True)
class Quanto:
    """optimum-quanto's int8 weights, per output channel and symmetric.

    Through `quantize(..., weights=qint8, include=...)` and `freeze` on the same Linears as every
    other row. Source: the library (optimum-quanto 0.2.7), its defaults; nothing is calibrated.
    Left out: quantized activations, whose scales the library learns in its own calibration pass.
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
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        chosen, kept = split_layers(denoiser, calibration=calibration, bits=bits)
        every = sum(one.weight.numel() for one in linear_layers(denoiser).values())
        _replace(denoiser, chosen, bits=bits)
        sizes = taken(denoiser, chosen, kept=kept)
        return library_report(
            sizes,
            kept=kept,
            kept_weights=every - sum(i * o for i, o in sizes.values()),
            bits=bits,
            elements=["optimum-quanto's own modules and defaults"],
            left_out=["quantized activations"],
        )

    def corrector(self, *, calibration: Calibration) -> None:
        return None


def _replace(denoiser: nn.Module, chosen: dict[str, nn.Linear], *, bits: Bits) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(denoiser, weights=qint8, include=list(chosen))
    freeze(denoiser)
