"""Round to nearest."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    TO_NEAREST,
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    QuantizationReport,
    StatisticsNeeds,
    elements,
    quantize_layers,
)

LARGEST = Element(
    name="range from the largest magnitude",
    has=elements.largest_magnitude,
    otherwise="the bits have another range rule",
)


@dataclass(kw_only=True)
class RoundToNearest:
    """Scales from the largest magnitude, codes to nearest; nothing else.

    `s = max|x| / q_max`, `x_hat = s clip(round(x / s))`; what one scale spans, and other rules for
    the range, are the bits' business.
    Source: common to all of the field. Left out: nothing. Cost: extremes of each layer's input; no
    search, nothing is learned.

    The row that the SegQuant paper's tables call Q-Diffusion is this, on a calibration set of
    uniformly spaced timesteps, with per-tensor scales.
    """

    sample_rows: int = 1024  # rows per layer on which the reported error is measured

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            elements=[LARGEST, TO_NEAREST],
        )
