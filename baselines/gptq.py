"""GPTQ: weights rounded one input channel after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from segquant.core import (
    BY_GPTQ,
    Bits,
    Calibration,
    Element,
    GptqSettings,
    GptqVariant,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    Sequential,
    StatisticsNeeds,
    quantize_layers,
)


@dataclass(kw_only=True)
class Gptq:
    """Round weights so that later columns make up for the error of earlier ones.

    `H = X^T X + damping mean(diag) I`, `U` the upper Cholesky factor of its inverse; column by
    column, `e = (w_i - q_i) / U_ii` and `w_j -= e U_ij` for all j > i.
    Source: Frantar et al. 2023, arXiv 2210.17323, algorithm 1; defaults are the paper's, but for
    `sequential`, which costs a run of the denoiser over the calibration set per block.
    Left out: scales of a group taken when its first column is reached; ours are all from the start.
    Cost: an I x I Gram matrix in float32 per layer input; its Cholesky factor, I^2 O operations.
    """

    damping: float = 0.01  # of the mean diagonal of H = X^T X
    block_size: int = 128
    act_order: bool = False  # input channels with the largest second moment first
    # Whether later layers see the error of earlier ones, as in the paper: block by block, or within
    # a block by shared input.
    sequential: Sequential = Sequential.none
    # released: the raw inverse for its Cholesky factor, as in the SegQuant authors' code
    variant: GptqVariant = GptqVariant.cholesky
    sample_rows: int = 1024

    def needs(self) -> StatisticsNeeds:
        replay = self.sequential is not Sequential.none
        return StatisticsNeeds(gram=True, rows=self.sample_rows, replay=replay)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        settings = GptqSettings(
            damping=self.damping,
            block_size=self.block_size,
            act_order=self.act_order,
            variant=self.variant,
        )
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=Rounding.gptq, gptq=settings, sequential=self.sequential),
            elements=self._elements(),
            left_out=self._left_out(),
        )

    def _elements(self) -> list[Element | str]:
        done: list[Element | str] = ["lazy blocks"]
        name = "GPTQ with the upper Cholesky factor of the inverse"
        if self.variant is GptqVariant.released:
            name = "GPTQ; switch variant=released: the raw inverse for its Cholesky factor"
        done.insert(0, replace(BY_GPTQ, name=name))
        if self.sequential is not Sequential.none:
            done.append(f"later layers see earlier ones' error (sequential={self.sequential.name})")
        return done

    def _left_out(self) -> list[str]:
        if self.sequential is not Sequential.none:
            return []
        return ["later layers see the unquantized model's inputs, not the quantized one's"]
