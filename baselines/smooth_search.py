"""SmoothQuant with alpha searched for each layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    ENOUGH_PROMPTS,
    FOLDING,
    NOT_FOLDED,
    TO_NEAREST,
    AlphaGrid,
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    QuantizationReport,
    SmoothingMode,
    SmoothingSettings,
    StatisticsNeeds,
    quantize_layers,
)


@dataclass(kw_only=True)
class SmoothSearch:
    """SmoothQuant whose alpha minimises each layer's output error, from the statistics alone.

    `alpha = argmin ||X W^T - Q(X / s) Q(W s)^T||^2` over a grid with both its ends, and "no
    smoothing". Source: SmoothQuant (arXiv 2211.10438) for the factors; the search is what the
    SegQuant paper (arXiv 2507.14811) calls Smooth+. What exactly is minimised:
    `segquant.core.smoothing`. Left out: nothing that the paper says of it. Cost: twelve products of
    a layer's sampled rows; no forward of the denoiser beyond the calibration.
    """

    alpha_min: float = 0.0
    alpha_max: float = 1.0
    alpha_step: float = 0.1
    include_none: bool = True  # "no smoothing" among the candidates; the authors' code has none
    # released: the last alpha and "no smoothing" are never evaluated, as in the authors' code
    alpha_grid: AlphaGrid = AlphaGrid.full
    held_out: bool = False  # each row judged by factors and scales from other calibration prompts
    use_gram: bool = False  # the weights' part of the error from all rows, not the sampled ones
    fold: bool = False  # layers of one input share a vector, folded into what makes the input
    sample_rows: int = 1024  # rows per layer on which the candidates are compared

    def __post_init__(self) -> None:
        self._smoothing()  # refuses values out of range, before anything runs

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(
            rows=self.sample_rows,
            gram=self.use_gram,
            graph=self.fold,
            prompts=ENOUGH_PROMPTS if self._smoothing().over_fits else 1,
        )

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        elements: list[Element | str] = [
            f"smoothing of every Linear, alpha searched{', held out' if self.held_out else ''}",
            *([FOLDING] if self.fold else []),
            TO_NEAREST,
        ]
        if self.alpha_grid is AlphaGrid.released:
            elements.append(
                'switch alpha_grid=released: last alpha and "no smoothing" never evaluated'
            )
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(smoothing=self._smoothing(), fold=self.fold),
            elements=elements,
            left_out=[] if self.fold else [NOT_FOLDED],
        )

    def _smoothing(self) -> SmoothingSettings:
        return SmoothingSettings(
            mode=SmoothingMode.search,
            alpha_min=self.alpha_min,
            alpha_max=self.alpha_max,
            alpha_step=self.alpha_step,
            include_none=self.include_none,
            use_gram=self.use_gram,
            held_out=self.held_out,
            alpha_grid=self.alpha_grid,
        )
