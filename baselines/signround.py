"""SignRound: rounding and ranges of each weight learned by signed gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    SignRoundSettings,
    StatisticsNeeds,
    quantize_layers,
    rounded_by,
)
from segquant.core.elements import narrowed


@dataclass(kw_only=True)
class SignRound:
    """Learn for each weight whether it goes up or down, and for each scale how far it reaches.

    `W_q = s alpha q(W / (s alpha) + V)`, V in [-0.5, 0.5], alpha in [`least_range`, 1];
    `V -= lr sign(dL/dV)`, alpha likewise, with lr from 1 / iterations linearly to 0; the best
    iterate is kept. `L = ||X (W_q - W)^T||^2`, exactly, from the Gram matrix: what is minimised is
    stated in `segquant.core.signed_rounding`.
    Source: Cheng et al. 2023, arXiv 2309.05516, eq. 3 to 5; 200 iterations are theirs.

    Left out: the error of a whole block (theirs runs a block forward and backward at every
    iteration), so nothing of what one layer does to the next, nor of quantized inputs, is learned;
    a factor for either end of an asymmetric range (one serves both); ranges of MX blocks, whose
    scales are powers of two.
    Cost: no forward; an I x I Gram matrix per layer input and `iterations` products [O, I] x [I, I]
    a layer; nothing at run time.
    """

    iterations: int = 200
    learning_rate: float | None = None  # the first step; null: 1 / iterations
    learn_range: bool = True
    least_range: float = 0.5  # of the range that reaches the largest weight
    sample_rows: int = 1024  # rows per layer on which the reported error is measured

    def __post_init__(self) -> None:
        self._settings()  # refuses values out of range, before anything runs

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=True, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        done = [rounded_by(Rounding.signround)]
        if self.learn_range:
            why = "scales of MX blocks are powers of two"
            done.append(Element(name="learned ranges", has=narrowed, otherwise=why))
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=Rounding.signround, signround=self._settings()),
            elements=done,
            left_out=[
                *([] if self.learn_range else ["learned ranges"]),
                "the error of whole blocks: each layer's own, from its Gram matrix",
                "quantized inputs while learning",
            ],
        )

    def _settings(self) -> SignRoundSettings:
        return SignRoundSettings(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            learn_range=self.learn_range,
            least_range=self.least_range,
        )
