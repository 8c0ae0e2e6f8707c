"""PermuQuant: channels sorted by what they carry, so that like ones share a group's scale.

Legend: T rows, O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segquant.core import (
    Bits,
    Calibration,
    Element,
    GptqSettings,
    LayerRecipe,
    LayerStatistics,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    elements,
    quantize_layers,
    rounded_by,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.outputs import layer_problem
from segquant.core.transforms import InputTransform


@dataclass(kw_only=True)
class PermuQuant:
    """Sort the input's channels by a joint second moment before they are cut into groups.

    `v_j = E[x_j^2]^alpha E[w_j^2]^(1 - alpha)`, largest first; the weight's columns are sorted
    offline and the input's channels with them, and each run of `group_size` neighbours has a scale
    of its own as before. The order is taken where it lowers the layer's output error
    `||Q(X P) Q(W P)^T - X W^T||^2` on calibration rows that the moments were not taken from, by
    more than `threshold` of it; elsewhere the channels stay as they are.
    SegLinear asks the same question, which channels are to share a scale: it answers by the graph,
    at no cost at run time, and this by the statistics.
    Source: Cheng et al. 2026, arXiv 2605.09503, the joint criterion and the acceptance rule.

    Left out: orders absorbed into the modules before, which then are one order for all that read a
    tensor: each layer has its own here, an index select of its input at run time. One `alpha` for
    all layers: none is searched for.
    Cost: no forward beyond the calibration; two roundings of a layer's weight and rows; at run time
    an index select, log2 I bits a channel.
    """

    alpha: float = 0.5
    threshold: float = 0.0  # part of the error by which it has to fall
    rounding: Rounding = Rounding.rtn  # gptq: after the order is chosen
    damping: float = 0.01
    gptq_block_size: int = 128
    sample_rows: int = 512  # half for the moments, half to judge by

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; give a number in [0, 1]")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}; give a number in [0, 1)")
        if self.sample_rows < 2:
            raise ValueError(f"sample_rows={self.sample_rows}; give at least 2, half to judge by")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=self.rounding.reads_gram, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if not any(one.quantized and one.group_size for one in (bits.weight, bits.activation)):
            return (
                f"{bits.name} has no groups of channels, and an order of them changes nothing; use "
                "bits per group, for example w4a4_int_group32 or w4a4_nvfp4"
            )
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            seen = calibration.statistics[name]
            return self._plan(linear, name=name, seen=seen, bits=bits)

        gptq = GptqSettings(damping=self.damping, block_size=self.gptq_block_size)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=self.rounding, gptq=gptq),
            plan_of=plan_of,
            elements=[
                Element(
                    name=f"channels sorted by their joint second moment, alpha {self.alpha:g}, "
                    "where the error falls",
                    has=elements.reordered,
                    otherwise="it falls in no layer",
                ),
                rounded_by(self.rounding),
            ],
            left_out=[
                "orders absorbed into the modules before: an index select of each layer's input"
            ],
        )

    def _plan(
        self, linear: nn.Linear, *, name: str, seen: LayerStatistics, bits: Bits
    ) -> LayerPlan:
        sizes = [one.group_size for one in (bits.weight, bits.activation) if one.quantized]
        if all(size is None or size >= linear.in_features for size in sizes):
            return LayerPlan(notes=("channels stay in order: they are one group",))
        half = max(1, seen.sample_TI.shape[0] // 2)
        moments_TI, judged_TI = seen.sample_TI[:half], seen.sample_TI[half:]
        if not judged_TI.shape[0]:
            return LayerPlan(notes=("not reordered: one row of its input is no calibration",))
        permutation_I = joint_order(moments_TI, linear.weight.detach(), alpha=self.alpha)
        transform = InputTransform(permutation_I=permutation_I)
        judging = replace(seen, sample_TI=judged_TI)
        before = _error(linear, name=name, seen=judging, bits=bits, transform=None)
        after = _error(linear, name=name, seen=judging, bits=bits, transform=transform)
        said = f"sorted, its error is {after / before:.3g} of what it is in order" if before else ""
        if after < (1 - self.threshold) * before:
            return LayerPlan(transform=transform, notes=(f"channels {said}",))
        return LayerPlan(notes=(f"channels stay in order: {said or 'there is no error'}",))


def joint_order(x_TI: Tensor, w_OI: Tensor, *, alpha: float) -> Tensor:
    """The channels [I] by `E[x^2]^alpha E[w^2]^(1 - alpha)`, largest first; int32, on the CPU."""
    x_I = x_TI.double().square().mean(0).cpu()
    w_I = w_OI.double().square().mean(0).cpu()
    return (x_I.pow(alpha) * w_I.pow(1 - alpha)).argsort(descending=True, stable=True).int()


def _error(
    linear: nn.Linear,
    *,
    name: str,
    seen: LayerStatistics,
    bits: Bits,
    transform: InputTransform | None,
) -> float:
    """Of the layer's output on the rows, rounded to nearest."""
    problem = layer_problem(linear, name=name, seen=seen, bits=bits, transform=transform)
    ones_I = torch.ones(linear.in_features, device=problem.w_OI.device)
    found_TO = problem.quantized_input(ones_I) @ problem.quantized_weight(problem.w_OI).T
    return float((found_TO - problem.output()).square().sum())
