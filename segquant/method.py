"""SegQuant: SegLinear and DualScale, on smoothing and rounding that any method may use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from segquant.core import (
    ENOUGH_PROMPTS,
    FOLDING,
    AlphaGrid,
    Bits,
    Boundaries,
    Calibration,
    Element,
    GptqSettings,
    GptqVariant,
    LayerRecipe,
    LayerShape,
    LowRankBudget,
    LowRankSettings,
    QuantizationReport,
    Rounding,
    Sequential,
    SmoothingMode,
    SmoothingSettings,
    StatisticsNeeds,
    elements,
    moved_boundaries,
    quantize_layers,
    rounded_by,
    shape_from_graph,
    smoothing_by,
    whole,
)
from segquant.core.recipe import no_dual_scale


@dataclass(kw_only=True)
class SegQuant:
    """Scales that follow the segments and polarities of the denoiser's static graph.

    SegLinear gives each segment of a Linear's output its own weight scale and smoothing, and each
    segment of its input its own activation scale (and weight scale and alpha). DualScale gives an
    input that comes from a one-sided activation one scale below zero and one above.
    Source: Zhang et al., arXiv 2507.14811, sections 3.2 (SegLinear) and 3.3 (DualScale).
    The paper's Optimizer is `smoothing` (and `rank`), its Calibrator is `rounding`: SegQuant-A is
    `rtn`, SegQuant-G is `gptq`.

    Where this differs from the authors' code: the alpha grid includes its last value and "no
    smoothing"; alphas are judged by the whole layer's output, not by one segment's partial sum;
    segments may be unequal; GPTQ uses the Cholesky factor of the inverse, on one H for the whole
    input unless `segment_hessians`; the low-rank branch has one rank for the layer, not one per
    segment; attention heads are segments only on request (`head_segments`), while the authors'
    8-bit presets always cut them.

    `gptq_variant`, `alpha_grid` and `low_rank_budget` bring the authors' code back, one by one.
    Left out: DMQ and SpinQuant as optimizers, which the paper names and the released code lacks;
    they are rows of their own. Cost: the static graph once; a search of twelve alphas a segment on
    sampled rows; a second product wherever DualScale applies; with gptq as `gptq`.
    """

    seg_linear: bool = True
    dual_scale: bool = True
    head_segments: bool = False  # attention heads as input segments of the output projection
    smoothing: SmoothingMode = SmoothingMode.search
    alpha: float = 0.5  # with smoothing=fixed
    alpha_min: float = 0.0
    alpha_max: float = 1.0
    alpha_step: float = 0.1
    include_none: bool = True
    use_gram: bool = False
    held_out: bool = False  # alphas judged on other calibration prompts than scales come from
    fold: bool = False  # layers of one input share a vector, folded into what makes the input
    rounding: Rounding = Rounding.rtn
    damping: float = 0.01
    block_size: int = 128
    act_order: bool = False
    segment_hessians: bool = False  # one H per input segment, cross terms dropped
    # Later layers see the error of earlier ones; the authors quantize all layers at once.
    sequential: Sequential = Sequential.none
    rank: int = 0  # of the low-rank branch; 0 for none
    low_rank_iterations: int = 1
    sample_rows: int = 1024
    # Switches that replay the authors' released code; each is off by default and in the report.
    gptq_variant: GptqVariant = GptqVariant.cholesky
    alpha_grid: AlphaGrid = AlphaGrid.full
    low_rank_budget: LowRankBudget = LowRankBudget.iso
    # An experiment (the paper's table 6): other boundaries than the graph's, equal in number.
    boundaries: Boundaries = Boundaries.graph
    boundary_seed: int = 0  # with boundaries=random

    def __post_init__(self) -> None:
        self._recipe()  # refuses values out of range, before anything runs

    def needs(self) -> StatisticsNeeds:
        gram = self.rounding.reads_gram or self.use_gram
        return StatisticsNeeds(
            gram=gram,
            rows=self.sample_rows,
            graph=self.seg_linear or self.dual_scale or self.fold,
            replay=self.sequential is not Sequential.none,
            prompts=ENOUGH_PROMPTS if self._recipe().smoothing.over_fits else 1,
        )

    def unsupported(self, bits: Bits) -> str | None:
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        graph = calibration.graph
        if graph is None and self.needs().graph:
            raise ValueError(
                "SegQuant needs the denoiser's static graph and the calibration has none; set "
                "calibration.graph, or seg_linear=false, dual_scale=false and fold=false"
            )

        if error := getattr(graph, "error", ""):
            raise ValueError(f"SegQuant needs the denoiser's static graph: {error}")

        def shape_of(name: str, linear: nn.Linear) -> LayerShape:
            sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
            if graph is None:
                return whole(**sizes)
            shape = shape_from_graph(graph, name, head_segments=self.head_segments, **sizes)
            if not self.seg_linear:
                return shape.uncut()
            return moved_boundaries(
                shape, boundaries=self.boundaries, seed=self.boundary_seed, layer=name
            )

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=self._recipe(),
            shape_of=shape_of,
            elements=self._elements(bits),
            left_out=self._left_out(),
        )

    def _recipe(self) -> LayerRecipe:
        return LayerRecipe(
            smoothing=SmoothingSettings(
                mode=self.smoothing,
                alpha=self.alpha,
                alpha_min=self.alpha_min,
                alpha_max=self.alpha_max,
                alpha_step=self.alpha_step,
                include_none=self.include_none,
                use_gram=self.use_gram,
                held_out=self.held_out,
                alpha_grid=self.alpha_grid,
            ),
            rounding=self.rounding,
            gptq=GptqSettings(
                damping=self.damping,
                block_size=self.block_size,
                act_order=self.act_order,
                segment_hessians=self.segment_hessians,
                variant=self.gptq_variant,
            ),
            low_rank=LowRankSettings(
                rank=self.rank,
                iterations=self.low_rank_iterations,
                budget=self.low_rank_budget,
            ),
            dual_scale=self.dual_scale,
            sequential=self.sequential,
            fold=self.fold,
        )

    def _elements(self, bits: Bits) -> list[Element | str]:
        done: list[Element | str] = []
        if self.seg_linear:
            why = "no Linear has segments that change anything at these bits"
            done.append(Element(name="SegLinear", has=elements.segmented, otherwise=why))
            heads = Element(
                name="attention heads as segments", has=elements.input_split, otherwise=why
            )
            done += [heads] if self.head_segments else []
        if self.dual_scale:
            why = no_dual_scale(bits.activation) or "no Linear's input is proven one-sided"
            done.append(Element(name="DualScale", has=elements.dual_scaled, otherwise=why))
        if self.smoothing is SmoothingMode.search:
            where = " and segment" if self.seg_linear else ""
            done.append(f"alpha searched per layer{where}{', held out' if self.held_out else ''}")
        elif self.smoothing is SmoothingMode.fixed:
            done.append(smoothing_by(f"smoothing, alpha {self.alpha:g}"))
        done += [FOLDING] if self.fold and self.smoothing is not SmoothingMode.none else []
        whose = "layer" if self.low_rank_budget is LowRankBudget.iso else "segment"
        if self.rank:
            name, why = f"low-rank branch, rank {self.rank} per {whose}", "no weight leaves room"
            done.append(Element(name=name, has=elements.low_rank, otherwise=why))
        done.append(rounded_by(self.rounding))
        if self.sequential is not Sequential.none:
            done.append(f"later layers see earlier ones' error (sequential={self.sequential.name})")
        return [*done, *self._switches()]

    def _switches(self) -> list[str]:
        """What is done otherwise than the paper has it, on request."""
        on = []
        if self.gptq_variant is GptqVariant.released and self.rounding is Rounding.gptq:
            on.append("switch gptq_variant=released: the raw inverse for its Cholesky factor")
        if self.alpha_grid is AlphaGrid.released and self.smoothing is SmoothingMode.search:
            on.append('switch alpha_grid=released: last alpha and "no smoothing" never evaluated')
        if self.low_rank_budget is LowRankBudget.per_segment and self.rank:
            on.append("switch low_rank_budget=per_segment: a full rank for every segment")
        if self.boundaries is not Boundaries.graph and self.seg_linear:
            seed = f", seed {self.boundary_seed}" if self.boundaries is Boundaries.random else ""
            on.append(f"experiment boundaries={self.boundaries.name}{seed}")
        return on

    def _left_out(self) -> list[str]:
        missing = [] if self.seg_linear else ["SegLinear"]
        missing += [] if self.dual_scale else ["DualScale"]
        missing += [] if self.head_segments else ["attention heads as segments"]
        return [*missing, "kernels: execution is simulated"]
