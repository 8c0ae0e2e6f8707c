"""Qronos: GPTQ that also corrects what the quantized layers before did to a layer's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from segquant.core import (
    BY_GPTQ,
    Bits,
    Calibration,
    Element,
    GptqSettings,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    Sequential,
    StatisticsNeeds,
    elements,
    quantize_layers,
)


@dataclass(kw_only=True)
class Qronos:
    """Round weights to give, on the quantized model's inputs, the unquantized model's outputs.

    `min_Q ||X W^T - X~ Q^T||^2`, X the inputs of the unquantized denoiser, X~ those of the one that
    is quantized so far: `H = X~^T X~ + damping mean(diag) I`, `M = (X - X~)^T X~`. The first column
    is the nearest to `w_1 + (W M)_1 / H_11`, the others start from `W + W M H^-1` and follow GPTQ.
    Source: Zhang et al. 2025, arXiv 2505.11695, algorithm 1 and its theorem that the later columns
    are GPTQ's. GPTAQ (arXiv 2504.02692) corrects for the same difference column by column, by an
    approximation; Qronos solves for all columns at once.

    Left out: the paper's damping, 1e-6 of the largest eigenvalue, which a language model's
    calibration set bears (`damping` is GPTQ's); inputs that are quantized themselves (X~ is a
    layer's input before its own grid).
    Cost: as gptq with `sequential`, and at every stage the unquantized denoiser over the whole
    calibration set too, a copy of which stays in memory; another I x I matrix per layer of a stage.
    Nothing at run time.
    """

    damping: float = 0.01  # of the mean diagonal of H
    block_size: int = 128
    act_order: bool = False  # input channels with the largest second moment first
    sequential: Sequential = Sequential.blocks  # what is quantized before inputs are seen again
    sample_rows: int = 1024

    def __post_init__(self) -> None:
        if self.sequential is Sequential.none:
            raise ValueError(
                "sequential=none: then no layer sees a quantized one's output, and qronos is gptq; "
                "set blocks or inputs, or use method=gptq"
            )
        self._settings()  # refuses values out of range, before anything runs

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=True, rows=self.sample_rows, replay=True)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(
                rounding=Rounding.gptq, gptq=self._settings(), sequential=self.sequential
            ),
            elements=[
                replace(BY_GPTQ, name="GPTQ with the upper Cholesky factor of the inverse"),
                Element(
                    name="correction for quantized layers before",
                    has=elements.corrected,
                    otherwise="no layer's input differs from the unquantized denoiser's",
                ),
                f"later layers see earlier ones' error (sequential={self.sequential.name})",
            ],
            left_out=["a layer's own input as it is quantized: corrected are its layers before"],
        )

    def _settings(self) -> GptqSettings:
        return GptqSettings(
            damping=self.damping,
            block_size=self.block_size,
            act_order=self.act_order,
            corrected=True,
        )
