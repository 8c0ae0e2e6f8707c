"""One Linear, from its weight and its statistics to a QuantLinear and what is to be said of it.

Legend: O output features, I input features, P output segments, G distinct smoothing vectors,
T sampled rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.core.activation import stacked_scales, static_scales
from segquant.core.input_statistics import LayerStatistics
from segquant.core.linear import LinearSpec, QuantLinear
from segquant.core.lowrank import LowRank, factor_dtype, low_rank_branch
from segquant.core.recipe import LayerRecipe, effective_shape, partitions
from segquant.core.rounding import (
    Correction,
    Factor,
    FactorCache,
    Rounded,
    Rounding,
    gptq,
    gptq_factor,
    segment_gram,
)
from segquant.core.schemes import Bits, Granularity
from segquant.core.segments import LayerShape
from segquant.core.signed_rounding import ranges_are_learned, signround
from segquant.core.smoothing import (
    Alpha,
    LayerInput,
    Partition,
    SearchFit,
    Smoothing,
    SmoothingMode,
    smooth,
)
from segquant.core.weights import (
    WeightGrid,
    WeightScales,
    fake_quantize_weight,
    quantize_weight,
    weight_scales,
)

LEARNED_ROUNDING = "learned rounding: the weight's error on the calibration's inputs is"
RANGES_KEPT = "ranges as they were"
CORRECTED = "corrected for what the quantized layers before it do to its input"
NOT_GPTQ = "rounded to nearest, not by GPTQ"


@dataclass(kw_only=True)
class QuantizedLayer:
    """What was done to one layer; a record's entry."""

    name: str
    in_features: int
    out_features: int
    weight: str
    activation: str
    output_segments: list[int]
    input_segments: list[int]
    dual_scale: list[bool]  # per input segment
    alphas: list[list[Alpha]]  # per output segment, per input segment; None: not smoothed
    rounding: str
    rank: int
    low_rank_budget: str
    low_rank_parameters: list[int]  # of the factor that reads the input, and of the other
    smoothing_vectors: int
    relative_error: float  # ||Y - Y_quantized||^2 / ||Y||^2 on the sampled rows, without bias
    smoothing_at_run_time: bool = False
    search_fit: SearchFit | None = None  # of searched alphas, on a calibration in several parts
    notes: list[str] = field(default_factory=list)
    elements: list[str] = field(default_factory=list)  # of the method's, those that it has


def quantize_linear(
    linear: nn.Linear,
    *,
    name: str,
    seen: LayerStatistics,
    shape: LayerShape,
    bits: Bits,
    recipe: LayerRecipe,
    factors: FactorCache | None = None,
    smoothing: Smoothing | None = None,
) -> tuple[QuantLinear, QuantizedLayer]:
    """The layer's replacement, on its device and in its type, and its entry of the report.

    Args:
        smoothing: one vector [1, I] for the whole layer, found elsewhere; None for its own.
    """
    with torch.no_grad():
        return _quantize_linear(
            linear,
            name=name,
            seen=seen,
            shape=shape,
            bits=bits,
            recipe=recipe,
            factors=factors or FactorCache(),
            smoothing=smoothing,
        )


def _quantize_linear(
    linear: nn.Linear,
    *,
    name: str,
    seen: LayerStatistics,
    shape: LayerShape,
    bits: Bits,
    recipe: LayerRecipe,
    factors: FactorCache,
    smoothing: Smoothing | None,
) -> tuple[QuantLinear, QuantizedLayer]:
    w_OI = linear.weight.detach().float()
    if not bool(w_OI.isfinite().all()):
        raise ValueError(f"{name}: its weight holds NaN or infinity; check the checkpoint")
    notes: list[str] = []
    shape = effective_shape(shape, bits=bits, recipe=recipe, notes=notes)
    parts = partitions(shape, name=name, bits=bits, recipe=recipe, notes=notes)
    inputs = layer_input(seen, w_OI.device, gram=needs_gram(recipe))
    if needs_gram(recipe) and inputs.gram_II is None:
        raise ValueError(
            f"{name}: the calibration has no Gram matrix, which this method needs; calibrate with "
            "gram=True"
        )
    if smoothing is None:
        smoothing = smooth(
            w_OI,
            seen=inputs,
            output_segments=shape.output,
            partitions=parts,
            weight=bits.weight,
            activation=bits.activation,
            settings=recipe.smoothing,
        )
    else:
        smoothing = smoothing.repeated(len(shape.output))
    groups, factors_GI = _distinct(smoothing)
    job = _Job(
        name=name,
        shape=shape,
        parts=parts,
        inputs=inputs,
        bits=bits,
        recipe=recipe,
        gram_key=seen.gram_II,
        factors=factors,
        notes=notes,
        mismatch_II=_moved(seen.mismatch_II, w_OI.device),
    )
    quant = job.build(linear, w_OI, groups, factors_GI)
    error = relative_error(linear, quant, inputs.sample_TI, with_bias=False)
    return quant, _entry(job, quant, smoothing, factors_GI, error)


@dataclass(kw_only=True)
class _Job:
    """One layer on its way."""

    name: str
    shape: LayerShape
    parts: list[Partition]
    inputs: LayerInput
    bits: Bits
    recipe: LayerRecipe
    gram_key: Tensor | None  # the calibration's own Gram matrix, by identity
    factors: FactorCache
    notes: list[str]
    mismatch_II: Tensor | None = None
    smoothed_OI: Tensor | None = None  # the weight that meets the smoothed input

    def build(
        self, linear: nn.Linear, w_OI: Tensor, groups: tuple[int, ...], factors_GI: Tensor | None
    ) -> QuantLinear:
        """Smoothing, low rank, scales and codes, in this order, and the module that holds them."""
        sizes = self.shape.output
        row_factors = None
        if factors_GI is not None:
            row_factors = torch.cat(
                [factors_GI[g].expand(n, -1) for g, n in zip(groups, sizes, strict=True)]
            )
        smoothed_OI = w_OI if row_factors is None else w_OI * row_factors
        grid = self._weight_grid()
        branch = self._branch(smoothed_OI, row_factors, grid, linear.weight.dtype)
        residual_OI = smoothed_OI if branch is None else smoothed_OI - branch.product()
        if self.recipe.low_rank.leading:
            residual_OI[:, : self.recipe.low_rank.rank] = 0  # no second, quantized reading of them
        scales = weight_scales(residual_OI, grid=grid)
        self.smoothed_OI = smoothed_OI
        codes_OI, scales = self._codes(residual_OI, scales, grid, groups, factors_GI)
        spec = self._spec(linear, groups if factors_GI is not None else (), branch)
        quant = QuantLinear(spec, device=w_OI.device, dtype=linear.weight.dtype)
        tensors: dict[str, Tensor | None] = {
            "weight_scale": scales.scale,
            "weight_zero_point": scales.zero_point,
            "smoothing": factors_GI,
            "low_rank_up": None if branch is None else branch.up_OR,
            "low_rank_down": None if branch is None else branch.down_RI,
            "bias": linear.bias,
            **self._activation_tensors(spec, factors_GI),
        }
        return quant.fill(codes_OI=codes_OI, tensors=tensors)

    def _weight_grid(self) -> WeightGrid:
        blocks = tuple(size for part in self.parts for size in part.weight_blocks)
        return WeightGrid(scheme=self.bits.weight, row_blocks=self.shape.output, blocks=blocks)

    def _spec(
        self, linear: nn.Linear, groups: tuple[int, ...], branch: LowRank | None
    ) -> LinearSpec:
        dtype = factor_dtype(linear.weight.dtype)
        return LinearSpec(
            weight=self.bits.weight,
            activation=self.bits.activation,
            output_segments=self.shape.output,
            weight_blocks=self._weight_grid().blocks,
            activation_blocks=tuple(s for part in self.parts for s in part.activation_blocks),
            dual=tuple(part.dual for part in self.parts for _ in part.activation_blocks),
            smoothing_groups=groups,
            rank=0 if branch is None else branch.up_OR.shape[1],
            rank_dtype=dtype,
            bias=linear.bias is not None,
        )

    def _branch(
        self,
        smoothed_OI: Tensor,
        row_factors: Tensor | None,
        grid: WeightGrid,
        dtype: torch.dtype,
    ) -> LowRank | None:
        def error(residual_OI: Tensor, branch: LowRank) -> float:
            difference_OI = smoothed_OI - branch.product() - residual_OI
            if row_factors is not None:
                difference_OI = difference_OI / row_factors
            return float((self.inputs.sample_TI @ difference_OI.T).square().mean())

        return low_rank_branch(
            smoothed_OI,
            output=self.shape.output,
            inputs=self.shape.input,
            settings=self.recipe.low_rank,
            dtype=factor_dtype(dtype),
            quantized=lambda residual_OI: fake_quantize_weight(residual_OI, grid=grid),
            error=error,
        )

    def _codes(
        self,
        residual_OI: Tensor,
        scales: WeightScales,
        grid: WeightGrid,
        groups: tuple[int, ...],
        factors_GI: Tensor | None,
    ) -> tuple[Tensor, WeightScales]:
        """Codes, and the scales that they are on."""
        if self.recipe.rounding is Rounding.rtn:
            return quantize_weight(residual_OI, scales=scales, grid=grid), scales
        if self.recipe.rounding is Rounding.signround:
            return self._signround(residual_OI, scales, grid, groups, factors_GI)
        rows = scales.per_row(grid)
        if factors_GI is None:
            factor, correction = self._plain_factor(), self._correction()
            rounded = self._gptq(residual_OI, rows, grid, factor, correction)
            return rounded.codes_OI, scales
        codes_OI = torch.empty_like(residual_OI)
        for (at, gram_II), factors_I in zip(
            self._grams(groups, factors_GI, residual_OI.device), factors_GI, strict=True
        ):
            factor, own = gptq_factor(gram_II, settings=self.recipe.gptq), _rows_at(rows, at)
            correction = self._correction(at, factors_I)
            codes_OI[at] = self._gptq(residual_OI[at], own, grid, factor, correction).codes_OI
        return codes_OI, scales

    def _correction(
        self, at: Tensor | slice = slice(None), factors_I: Tensor | float = 1.0
    ) -> Correction | None:
        """For rows whose input is divided by these factors; None where inputs are as they were."""
        mismatch_II = self.mismatch_II
        if mismatch_II is None or not self.recipe.gptq.corrected:
            return None
        assert self.smoothed_OI is not None
        diagonal_I = self._gram().diagonal() / (factors_I * factors_I)
        pull_OI = (self.smoothed_OI[at] / factors_I) @ mismatch_II / factors_I
        if bool(pull_OI.any()) and CORRECTED not in self.notes:
            self.notes.append(CORRECTED)
        return Correction(pull_OI=pull_OI, diagonal_I=diagonal_I)

    def _grams(
        self, groups: tuple[int, ...], factors_GI: Tensor, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each smoothing group its rows and the Gram matrix of the input that they read."""
        group_O = torch.tensor(groups, device=device).repeat_interleave(
            torch.tensor(self.shape.output, device=device)
        )
        for group, factors_I in enumerate(factors_GI):
            at = (group_O == group).nonzero().flatten()
            yield at, self._gram() / (factors_I[:, None] * factors_I)

    def _signround(
        self,
        residual_OI: Tensor,
        scales: WeightScales,
        grid: WeightGrid,
        groups: tuple[int, ...],
        factors_GI: Tensor | None,
    ) -> tuple[Tensor, WeightScales]:
        grams: list[tuple[Tensor | slice, Tensor]] = [(slice(None), self._gram())]
        if factors_GI is not None:
            grams = list(self._grams(groups, factors_GI, residual_OI.device))

        def times_gram(wrong_OI: Tensor) -> Tensor:
            if len(grams) == 1:
                return wrong_OI @ grams[0][1]
            product_OI = torch.empty_like(wrong_OI)
            for at, gram_II in grams:
                product_OI[at] = wrong_OI[at] @ gram_II
            return product_OI

        settings = self.recipe.signround
        learned = signround(residual_OI, times_gram, scales=scales, grid=grid, settings=settings)
        fixed = "" if ranges_are_learned(grid.scheme, settings) else f", {RANGES_KEPT}"
        self.notes.append(f"{LEARNED_ROUNDING} {learned.remaining:.3g} of to nearest's{fixed}")
        return learned.codes_OI, learned.scales

    def _gptq(
        self,
        w_OI: Tensor,
        rows: WeightScales,
        grid: WeightGrid,
        factor: Factor | None,
        correction: Correction | None,
    ) -> Rounded:
        rounded = gptq(
            w_OI,
            factor,
            scales=rows,
            grid=_row_grid(grid, rows=w_OI.shape[0]),
            block_size=self.recipe.gptq.block_size,
            correction=correction,
        )
        if rounded.fallback is not None:
            self.notes.append(f"{NOT_GPTQ}: {rounded.fallback}")
        return rounded

    def _gram(self) -> Tensor:
        assert self.inputs.gram_II is not None
        if self.recipe.gptq.segment_hessians:
            return segment_gram(self.inputs.gram_II, self.shape.input)
        return self.inputs.gram_II

    def _plain_factor(self) -> Factor | None:
        assert self.gram_key is not None
        segments = self.shape.input if self.recipe.gptq.segment_hessians else ()
        return self.factors.get(
            self.gram_key, segments, lambda: gptq_factor(self._gram(), settings=self.recipe.gptq)
        )

    def _activation_tensors(
        self, spec: LinearSpec, factors_GI: Tensor | None
    ) -> dict[str, Tensor | None]:
        grid = spec.activation_grid
        if grid is None or not spec.activation.calibrated:
            return {}
        low_I, high_I, sample_TI = self.inputs.low_I, self.inputs.high_I, self.inputs.sample_TI
        rows = [torch.ones_like(low_I)] if factors_GI is None else list(factors_GI)
        return stacked_scales(
            [
                static_scales(low_I / row, high_I / row, grid=grid, sample_TI=sample_TI / row)
                for row in rows
            ]
        )


def _rows_at(scales: WeightScales, at: Tensor) -> WeightScales:
    """Scales per output feature, of the features asked for."""
    wide = scales.scale.shape[0] > 1
    zero_point = scales.zero_point
    return WeightScales(
        scale=scales.scale[at] if wide else scales.scale,
        zero_point=zero_point[at] if wide and zero_point is not None else zero_point,
    )


def _row_grid(grid: WeightGrid, *, rows: int) -> WeightGrid:
    """The grid of some rows whose scales are already given per output feature (or once for all)."""
    scheme = grid.scheme
    if scheme.granularity is Granularity.per_tensor:
        scheme = replace(scheme, granularity=Granularity.per_channel)
    return WeightGrid(scheme=scheme, row_blocks=(rows,), blocks=grid.blocks)


def needs_gram(recipe: LayerRecipe) -> bool:
    """Whether the recipe reads Gram matrices."""
    searched = recipe.smoothing.mode is SmoothingMode.search and recipe.smoothing.use_gram
    return searched or recipe.rounding.reads_gram


def layer_input(seen: LayerStatistics, device: torch.device, *, gram: bool) -> LayerInput:
    """The statistics on a device, the Gram matrix only where it is asked for."""
    gram_II = seen.gram_II if gram else None
    return LayerInput(
        sample_TI=seen.sample_TI.to(device),
        low_I=seen.low_I.to(device),
        high_I=seen.high_I.to(device),
        gram_II=_moved(gram_II, device),
        rows=seen.rows,
        part_low_PI=_moved(seen.part_low_PI, device),
        part_high_PI=_moved(seen.part_high_PI, device),
        sample_part_T=_moved(seen.sample_part_T, device),
    )


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def _distinct(smoothing: Smoothing) -> tuple[tuple[int, ...], Tensor | None]:
    """The group of each output segment, and the distinct vectors [G, I]; None if all are ones."""
    factors_PI = smoothing.factors_PI
    if bool((factors_PI == 1).all()):
        return (0,) * factors_PI.shape[0], None
    distinct: list[Tensor] = []
    groups: list[int] = []
    for factors_I in factors_PI:
        equal = (n for n, other in enumerate(distinct) if torch.equal(other, factors_I))
        group = next(equal, len(distinct))
        if group == len(distinct):
            distinct.append(factors_I)
        groups.append(group)
    return tuple(groups), torch.stack(distinct)


def relative_error(
    linear: nn.Linear, quant: QuantLinear, sample_TI: Tensor, *, with_bias: bool
) -> float:
    """||Y - Y_quantized||^2 / ||Y||^2 on the sampled rows, Y without the bias.

    Args:
        with_bias: the difference is between outputs with their bias, as they leave the layer.
            Otherwise the bias is taken off the quantized output. In half precision the two round
            differently, and in float32 in the last digits.
    """
    with torch.no_grad():
        x_TI = sample_TI.to(linear.weight)
        exact_TO = F.linear(x_TI, linear.weight, linear.bias if with_bias else None).float()
        output_TO = quant(x_TI).float()
        if not with_bias and quant.bias is not None:
            output_TO = output_TO - quant.bias.float()
        wrong = float((output_TO - exact_TO).square().sum())
        if with_bias and linear.bias is not None:
            exact_TO = exact_TO - linear.bias.float()
        power = float(exact_TO.square().sum())
    return wrong / power if power > 0 else wrong


def _entry(
    job: _Job,
    quant: QuantLinear,
    smoothing: Smoothing,
    factors_GI: Tensor | None,
    relative_error: float,
) -> QuantizedLayer:
    return QuantizedLayer(
        name=job.name,
        in_features=quant.in_features,
        out_features=quant.out_features,
        weight=job.bits.weight.describe(),
        activation=job.bits.activation.describe(),
        output_segments=list(job.shape.output),
        input_segments=list(job.shape.input),
        dual_scale=[part.dual for part in job.parts],
        alphas=[list(row) for row in smoothing.alphas],
        rounding=job.recipe.rounding.name,
        rank=quant.spec.rank,
        low_rank_budget=job.recipe.low_rank.budget.name,
        low_rank_parameters=job.recipe.low_rank.parameters(
            output=job.shape.output, inputs=job.shape.input
        ),
        smoothing_vectors=0 if factors_GI is None else factors_GI.shape[0],
        smoothing_at_run_time=factors_GI is not None,
        search_fit=smoothing.fit,
        relative_error=relative_error,
        notes=job.notes,
    )
