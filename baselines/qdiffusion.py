"""Q-Diffusion: calibration at uniform steps, split shortcuts, block reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from baselines.adaround import AdaRound, step_of
from segquant.core import (
    Calibration,
    Element,
    LayerShape,
    StatisticsNeeds,
    elements,
    shape_from_graph,
)
from segquant.core.recorded_calls import Call


@dataclass(kw_only=True)
class QDiffusion(AdaRound):
    """Reconstruct blocks on samples of evenly spaced steps; concatenated inputs are split.

    Every c-th step gives samples, `uniform_steps` steps in all; a layer that reads a concatenation
    `[X1, X2]` has a quantizer for each part of its input and of its weight,
    `Y = Q1(X1) Q1(W1) + Q2(X2) Q2(W2)`; then AdaRound on blocks, as `adaround` has it.
    Source: Li et al. 2023, arXiv 2302.04304. A split needs to know what is concatenated, so this
    baseline reads the segments of the static graph (SegQuant generalises this split).

    Left out: the shortcuts of a UNet end in convolutions, which this harness leaves in 16 bit: in
    a UNet no Linear is split. Running mean of ranges (momentum 0.95): whole ranges are taken.
    Cost: as `adaround`.
    """

    uniform_steps: int = 20
    split_shortcuts: bool = True

    def needs(self) -> StatisticsNeeds:
        return replace(AdaRound.needs(self), graph=self.split_shortcuts)

    def draw(self, calls: Sequence[Call], *, generator: torch.Generator) -> list[Call]:
        """Calls of evenly spaced steps, as many of each as there is room for."""
        steps = list(dict.fromkeys(step_of(call) for call in calls))
        count = min(self.uniform_steps, len(steps))
        places = torch.linspace(0, len(steps) - 1, count).round().long().tolist()
        chosen = {steps[place] for place in places}
        pool = [call for call in calls if call.timestep in chosen]
        order = torch.randperm(len(pool), generator=generator).tolist()
        ranked = sorted(order, key=lambda number: _turn(pool, order, number))
        return [pool[number] for number in ranked[: self.calls]]

    def shape(self, name: str, linear: nn.Linear, *, calibration: Calibration) -> LayerShape:
        sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
        if not self.split_shortcuts:
            return AdaRound.shape(self, name, linear, calibration=calibration)
        if calibration.graph is None:
            raise ValueError(
                "qdiffusion with split_shortcuts=true needs the denoiser's static graph and the "
                "calibration has none; set calibration.graph, or split_shortcuts=false"
            )
        shape = shape_from_graph(calibration.graph, name, head_segments=False, **sizes)
        one_sided = (False,) * len(shape.input)
        return LayerShape(output=(shape.out_features,), input=shape.input, one_sided=one_sided)

    def elements(self) -> list[Element | str]:
        whole_inputs = "no Linear reads a concatenation that can be split at these bits"
        name = "split quantizers of concatenated inputs"
        element = Element(name=name, has=elements.input_split, otherwise=whole_inputs)
        split = [element] if self.split_shortcuts else []
        return [f"samples of {self.uniform_steps} uniform steps", *split, *AdaRound.elements(self)]

    def left_out(self) -> list[str]:
        split = [] if self.split_shortcuts else ["split shortcuts"]
        return [
            *split,
            "convolutions (and with them a UNet's shortcuts) stay in 16 bit",
            "running mean of ranges with momentum 0.95: whole ranges are taken",
            *AdaRound.left_out(self),
        ]


def _turn(pool: Sequence[Call], order: Sequence[int], number: int) -> int:
    """How many calls of the same step come before this one in the order."""
    before = order[: order.index(number)]
    return sum(pool[other].timestep == pool[number].timestep for other in before)
