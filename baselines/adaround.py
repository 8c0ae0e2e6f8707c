"""AdaRound on blocks (BRECQ): the engine of Q-Diffusion, PTQ4DM and PTQ4DiT, and a row too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from baselines.budget import Budget, shortened
from baselines.reconstruction import PAPER_ITERATIONS, Reconstruction, reconstruct
from baselines.soft import has_static_steps
from segquant.core import (
    Bits,
    Calibration,
    Element,
    LayerRecipe,
    LayerShape,
    QuantizationReport,
    StatisticsNeeds,
    quantize_layers,
    whole,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.recorded_calls import Call
from segquant.core.schemes import NumberFormat

MEGABYTE = 2**20
ON_BLOCKS = "AdaRound on blocks"


def step_of(call: Call) -> float:
    """The timestep of a call, for methods that draw by it.

    Raises:
        ValueError: the denoiser was called without one.
    """
    if call.timestep is None:
        raise ValueError(
            "a call of the denoiser has no timestep, and calls are drawn by it; use method=adaround"
        )
    return call.timestep


@dataclass(kw_only=True)
class AdaRound:
    """Learn, block by block, which weights are rounded up and which down.

    What is minimised, and how: `baselines.reconstruction`. Source: Nagel et al. 2020, arXiv
    2004.10568 (rounding); Li et al. 2021, arXiv 2102.05426 (blocks, and steps of activations).
    `lambda` 0.01, beta 20 to 2, warm-up 20 %, 20000 iterations at 1e-3 (5000 for the steps) are
    theirs; `budget=quick` is 60 (15) at a higher rate, for small models and tests.

    Steps are learned for static activations only: dynamic ones have none.
    Left out: a minibatch of mixed steps (one stored call is one step's); the papers' quantized
    attention products.
    Cost: calls x blocks forwards up to each block, twice; the iterations, forward and backward
    through one block each. The stored calls and a block's tensors lie on disk, each under
    `capture_megabytes`. The float denoiser stays in memory beside the quantized one.
    """

    budget: Budget = Budget.quick
    iterations: int | None = None  # instead of the budget's, at its learning rate
    calls: int = 16  # stored calls (one batch at one step each) of a denoiser to learn on
    regularization: float = 0.01
    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    learn_steps: bool = True  # of static activations
    capture_megabytes: int = 256
    seed: int = 0  # of the minibatches, and of the draw of calls
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.calls < 1 or self.capture_megabytes < 1:
            raise ValueError(
                f"calls={self.calls}, capture_megabytes={self.capture_megabytes}; give at least 1"
            )
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}; give at least 1, or null for budget's")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(
            rows=self.sample_rows, capture_bytes=self.capture_megabytes * MEGABYTE
        )

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.weight.quantized or bits.weight.number_format is not NumberFormat.integer:
            return (
                f"AdaRound chooses between two neighbouring integers and {bits.name} has weights "
                f"in {bits.weight.describe()}; use bits with integer weights"
            )
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        unquantized = copy.deepcopy(denoiser)
        settings = self._settings()
        report = quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            shape_of=lambda name, linear: self.shape(name, linear, calibration=calibration),
            plan_of=lambda name, linear: self.plan(name, linear, calibration=calibration),
            elements=self.elements(),
            left_out=[
                *self.left_out(),
                *shortened(settings.iterations, paper=PAPER_ITERATIONS),
                "minibatches of mixed steps: one stored call is one step's",
                "quantized attention products",
            ],
        )
        blocks = reconstruct(
            denoiser,
            unquantized=unquantized,
            calibration=calibration,
            calls=self._calls(calibration),
            settings=settings,
            report=report,
        )
        if not blocks and ON_BLOCKS in report.elements:
            report.elements.remove(ON_BLOCKS)
            report.left_out.append(f"{ON_BLOCKS}: no module is a block, layers are done one by one")
        return report

    def _settings(self) -> Reconstruction:
        return Reconstruction(
            budget=self.budget,
            calls=self.calls,
            own_iterations=self.iterations,
            regularization=self.regularization,
            warm_up=self.warm_up,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            joint=self.joint(),
            learn_steps=self.learn_steps,
            capture_bytes=self.capture_megabytes * MEGABYTE,
            seed=self.seed,
        )

    def _calls(self, calibration: Calibration) -> list[Call]:
        if calibration.captured is None:
            return []
        within = calibration.captured.within(self.capture_megabytes * MEGABYTE).calls
        generator = torch.Generator().manual_seed(self.seed)
        parts = dict.fromkeys(call.part for call in within)
        own = ([call for call in within if call.part == part] for part in parts)
        return [call for calls in own for call in self.draw(calls, generator=generator)]

    # What the methods that stand on this one do otherwise.

    def draw(self, calls: Sequence[Call], *, generator: torch.Generator) -> list[Call]:
        """The calls to learn on; here any, without replacement."""
        order = torch.randperm(len(calls), generator=generator)[: self.calls].tolist()
        return [calls[number] for number in order]

    def shape(self, name: str, linear: nn.Linear, *, calibration: Calibration) -> LayerShape:
        """A layer's segments; here none."""
        return whole(in_features=linear.in_features, out_features=linear.out_features)

    def plan(self, name: str, linear: nn.Linear, *, calibration: Calibration) -> LayerPlan:
        """A layer's plan; here the run's."""
        return LayerPlan()

    def joint(self) -> bool:
        """Whether rounding and activation steps are learned at the same time."""
        return False

    def elements(self) -> list[Element | str]:
        together = "learned static steps, jointly with the rounding"
        steps = Element(
            name=together if self.joint() else "learned static steps",
            has=lambda quant, entry: has_static_steps(quant),
            otherwise="no activation has static steps at these bits",
        )
        return [ON_BLOCKS, *([steps] if self.learn_steps else [])]

    def left_out(self) -> list[str]:
        return [] if self.learn_steps else ["learned activation steps"]
