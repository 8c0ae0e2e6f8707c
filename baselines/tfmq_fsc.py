"""TFMQ-DM's finite-set calibration: time-dependent layers get static scales for each step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.balancing import layer_steps
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
from segquant.core.segments import conditioning_of, no_conditioning


@dataclass(kw_only=True)
class TfmqFsc:
    """Scales of their own for each sampling step, in the layers that see little but the step.

    The input of these layers takes as many values as there are steps (and prompts' pooled
    embeddings): a range common to all steps is too wide for each. They are those whose input
    depends on the timestep and on no tokens, which the static graph tells, whatever their names:
    the embedding of the timestep, and the modulation. So each step t has its own
    `(scale_t, zero_point_t)` from that step's minimum and maximum.
    Source: Huang et al. 2024, arXiv 2311.16503 (finite set calibration).
    The ranges are those of the whole calibration at a step, not the authors' running mean over
    batches with momentum 0.95.

    Left out: information-aware reconstruction of the time-embedding block (TIAR), and
    Q-Diffusion's reconstruction of all other blocks (they are rounded to nearest).
    Cost: no forward beyond the calibration; one float32 scale per layer and step.
    """

    sample_rows: int = 256

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, steps=True, graph=True)

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.activation.quantized:
            return f"tfmq_fsc is about activation scales and {bits.name} has none"
        if bits.activation.dynamic:
            return (
                f"tfmq_fsc gives static scales to each step and {bits.name} takes scales from the "
                "tensor itself, which is finer; use bits with static activations"
            )
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            if not conditioning_of(calibration.graph, name):
                return LayerPlan()
            return LayerPlan(steps=layer_steps(calibration, name))

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=[
                Element(
                    name="finite-set calibration of the time-dependent layers",
                    has=elements.stepped,
                    otherwise=no_conditioning(calibration.graph),
                ),
                TO_NEAREST,
            ],
            left_out=[
                "reconstruction of the time-embedding block (TIAR)",
                "Q-Diffusion's reconstruction of the other blocks",
                "running mean of ranges with momentum 0.95: whole ranges are taken",
            ],
        )
