"""GPTQ: weights rounded one input channel after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    Bits,
    Calibration,
    GptqSettings,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    quantize_layers,
)


@dataclass(kw_only=True)
class Gptq:
    """Round weights so that later columns make up for the error of earlier ones.

    Source: Frantar et al. 2023, arXiv 2210.17323, algorithm 1; defaults are the paper's.
    """

    damping: float = 0.01  # of the mean diagonal of H = X^T X
    block_size: int = 128
    act_order: bool = False  # input channels with the largest second moment first
    sample_rows: int = 256

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=True, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        settings = GptqSettings(
            damping=self.damping, block_size=self.block_size, act_order=self.act_order
        )
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=Rounding.gptq, gptq=settings),
            elements=["GPTQ with the upper Cholesky factor of the inverse", "lazy blocks"],
            left_out=["later layers see the unquantized model's inputs, not the quantized one's"],
        )

    def corrector(self, *, calibration: Calibration) -> None:
        return None
