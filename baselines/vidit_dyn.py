"""ViDiT-Q: dynamic activations, and channels balanced by a static factor and a rotation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.balancing import balancing_by, layer_steps, power_factors
from baselines.quarot import layer_generator, rotation_by, unsupported_rotation
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
from segquant.core.transforms import InputTransform, hadamard_blocks, rotation_block


@dataclass(kw_only=True)
class ViditDyn:
    """Dynamic scales per token, after static and rotational balancing of the channels.

    `Y = Q((X / s) R) Q((W s) R)^T` with `s_j = max|X_j^(first)|^alpha / max|W_j|^(1 - alpha)` from
    the sampler's first step (the static part of the imbalance) and a Hadamard R for what varies
    over steps. Source: Zhao et al. 2024, arXiv 2406.02540 (static-dynamic channel
    balancing, dynamic quantization); alpha 0.3 as the authors' runs have it.

    Left out: the metric-decoupled mixed precision, and W8A8 for the first quarter of the steps:
    both change the bits of the row, which are the run's here (`mixdq` is a row of mixed bits).
    Cost: no forward beyond the calibration; at run time a division per channel and I log2 B
    additions a row.
    """

    alpha: float = 0.3
    rotate: bool = True
    block_size: int = 256
    seed: int = 0  # of the rotation's signs
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; give a number in [0, 1]")
        if self.block_size < 4 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}; give a power of two of at least 4")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, steps=True)

    def unsupported(self, bits: Bits) -> str | None:
        if bits.activation.quantized and not bits.activation.dynamic:
            return (
                f"vidit_dyn is dynamic quantization and {bits.name} has static activation scales; "
                "use bits with dynamic activations, for example w8a8_int8_token"
            )
        return unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            return LayerPlan(transform=self._transform(name, linear, calibration=calibration))

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=[
                Element(
                    name="dynamic activation scales",
                    has=elements.dynamic,
                    otherwise=f"{bits.name} leaves every input in 16 bit",
                ),
                balancing_by(f"static balancing from the first step, alpha {self.alpha:g}"),
                *([rotation_by("Hadamard rotation for the rest")] if self.rotate else []),
                TO_NEAREST,
            ],
            left_out=[
                *([] if self.rotate else ["rotation"]),
                "metric-decoupled mixed precision",
                "W8A8 in the first quarter of the steps",
            ],
        )

    def _transform(
        self, name: str, linear: nn.Linear, *, calibration: Calibration
    ) -> InputTransform:
        first_I = layer_steps(calibration, name).amax[0]
        salience_w_I = linear.weight.detach().abs().amax(0).float().cpu()
        scale_I = power_factors(first_I, salience_w_I, alpha=self.alpha)
        size = rotation_block(linear.in_features, largest=self.block_size)
        if not self.rotate or size == 0:
            return InputTransform(scale_I=scale_I)
        generator = layer_generator(name, seed=self.seed)
        rotation_NBB = hadamard_blocks(linear.in_features, block_size=size, generator=generator)
        return InputTransform(scale_I=scale_I, rotation_NBB=rotation_NBB, hadamard=True)
