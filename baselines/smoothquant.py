"""SmoothQuant with one alpha for all layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    FOLDING,
    NOT_FOLDED,
    TO_NEAREST,
    Bits,
    Calibration,
    LayerRecipe,
    QuantizationReport,
    SmoothingMode,
    SmoothingSettings,
    StatisticsNeeds,
    quantize_layers,
    smoothing_by,
)


@dataclass(kw_only=True)
class SmoothQuant:
    """Move activation outliers into the weights.

    `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`, activations divided, weights multiplied.
    Source: Xiao et al. 2023, arXiv 2211.10438, equation 4. The default alpha is the paper's for
    language models. The row that the SegQuant paper's W8A8 tables call PTQ4DiT is this at 0.5.
    Left out: static scales of the attention products, whose operands stay in 16 bit here.
    Cost: extremes per input channel; one division of each unfolded input.
    """

    alpha: float = 0.5  # migration strength in [0, 1]; 1 puts all the difficulty on the weights
    fold: bool = True  # one vector for q, k and v, in the norm before them, as published
    sample_rows: int = 1024

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, graph=self.fold)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        smoothing = SmoothingSettings(mode=SmoothingMode.fixed, alpha=self.alpha)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(smoothing=smoothing, fold=self.fold),
            elements=[
                smoothing_by(f"smoothing of every Linear, alpha {self.alpha:g}"),
                *([FOLDING] if self.fold else []),
                TO_NEAREST,
            ],
            left_out=[] if self.fold else [NOT_FOLDED],
        )
