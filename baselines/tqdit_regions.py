"""TQ-DiT's two regions: behind GELU, values below and above zero have a scale each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from baselines.svdquant import after_gelu
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
from segquant.core.layer_plan import LayerPlan
from segquant.core.ranges import RangeRule
from segquant.core.recipe import no_dual_scale
from segquant.core.segments import LayerShape, whole


@dataclass(kw_only=True)
class TqDitRegions:
    """Cut the range of a GELU's output at zero and search a scale for either region.

    One bit of a code says the region and the others count its steps:
    `x ~ -s1 q, q in [0, 2^(k-1)]` below zero and `x ~ s2 q, q in [0, 2^(k-1) - 1]` above, so that
    k bits hold both, and the product is one for either region. That is the grid of SegQuant's
    DualScale; the two differ in what they do with it. Here: behind GELU alone (DualScale: behind
    SiLU too), scales searched by error (DualScale: the largest value), no smoothing, no segments.
    Source: Hwang, Lee, Kang 2025, arXiv 2502.04056 (multi-region quantization), its abstract and
    introduction; how k bits are shared out is PTQ4ViT's twin uniform quantization, arXiv
    2111.12293, which it builds on.

    Left out: the regions of softmax outputs (no Linear of these denoisers reads one: products of
    attention are not quantized), scales for groups of timesteps, and the search by a Hessian of
    the task's loss: here it is by the input's squared error, over 36 factors from 1 to 0.3.
    Dynamic bits take each row's own largest values and search nothing.
    Cost: no forward; 72 passes over a layer's sampled rows; two products behind GELU at run time.
    """

    search: bool = True  # false: each region reaches its largest value
    sample_rows: int = 256

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, graph=True)

    def unsupported(self, bits: Bits) -> str | None:
        reason = no_dual_scale(bits.activation)
        return None if reason is None else f"two regions of an input need two scales: {reason}"

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        graph = calibration.graph
        if graph is None:
            raise ValueError(
                "tqdit_regions needs the denoiser's static graph and the calibration has none; "
                "set calibration.graph"
            )
        searched = self.search and not bits.activation.dynamic

        def shape_of(name: str, linear: nn.Linear) -> LayerShape:
            uncut = whole(in_features=linear.in_features, out_features=linear.out_features)
            return replace(uncut, one_sided=(after_gelu(graph, name),))

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            if not (searched and after_gelu(graph, name)):
                return LayerPlan()
            by_error = replace(bits.activation, range_rule=RangeRule.mse)
            return LayerPlan(bits=replace(bits, activation=by_error))

        why = getattr(graph, "error", "") or "no Linear's input is proven to come from GELU"
        names = ["two regions behind GELU"]
        names += ["scales of the regions searched by the input's squared error"] * searched
        done = [Element(name=name, has=elements.dual_scaled, otherwise=why) for name in names]
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(dual_scale=True),
            shape_of=shape_of,
            plan_of=plan_of,
            elements=[*done, TO_NEAREST],
            left_out=[
                *([] if searched else ["search for the regions' scales"]),
                "regions of softmax outputs: no Linear reads one",
                "scales for groups of timesteps",
                "a Hessian of the loss in the search",
                "kernels: execution is simulated",
            ],
        )
