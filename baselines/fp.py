"""The unquantized model, as a row of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    Bits,
    Calibration,
    LayerRecipe,
    QuantizationReport,
    StatisticsNeeds,
    quantize_layers,
)


@dataclass(kw_only=True)
class FullPrecision:
    """Leaves the denoiser as it is. Against the reference its error is zero.

    Source: the pipeline as published. Left out: nothing. Cost: none.
    """

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=1)

    def unsupported(self, bits: Bits) -> str | None:
        if bits.quantized:
            return f"fp quantizes nothing, {bits.name} does; use bits=w16a16"
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        return quantize_layers(denoiser, calibration=calibration, bits=bits, recipe=LayerRecipe())
