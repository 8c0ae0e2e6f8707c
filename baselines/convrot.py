"""ConvRot: a regular Hadamard transform of each group of channels before every quantized Linear."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from baselines.quarot import hadamard_plan, layer_generator, rotation_by, unsupported_rotation
from segquant.core import (
    Bits,
    Calibration,
    GptqSettings,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    quantize_layers,
    rounded_by,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.transforms import is_power_of_four


@dataclass(kw_only=True)
class ConvRot:
    """Rotate the input in groups by a Hadamard matrix without a column of ones, then round.

    `Y = Q(X H) Q(W H)^T`, H block diagonal over groups of `group_size` channels, each block a
    regular Hadamard matrix: rows and columns of equal sums, Kronecker powers of
    `[[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]] / 2`. In Sylvester's matrix one
    column is all ones: what the channels of a row have in common adds up in one channel of the
    rotated row and sets its step. A regular matrix spreads it evenly.
    Source: Huang et al. 2025, arXiv 2512.03673, section 3 (groups of 256, W4A4 per channel and per
    token, rounded to nearest). With bits=w8a8_int8_token it is what INT8 ConvRot checkpoints are.

    Left out: which Linears are rotated or left in 16 bit is a list for each model there; here
    every quantized Linear is rotated. A width that the group does not divide is padded with zeros
    there; here the group shrinks to the widest power of four that divides it (the layer's note
    says which). The convolution kernel that does the transform: execution is simulated.
    Cost: no forward and, rounded to nearest, nothing of the calibration (its rows measure the
    reported error alone); I log2 B additions a row at run time, no storage without signs.
    """

    group_size: int = 256
    random_signs: bool = False  # of the channels before H; the sums of its rows are then unequal
    seed: int = 0  # of the signs; each layer draws its own
    rounding: Rounding = Rounding.rtn  # as published; gptq needs Gram matrices
    damping: float = 0.01
    gptq_block_size: int = 128
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.group_size < 4 or not is_power_of_four(self.group_size):
            raise ValueError(
                f"group_size={self.group_size}; give a power of four: 4, 16, 64, 256 or 1024"
            )

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=self.rounding.reads_gram, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        return unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        settings = GptqSettings(damping=self.damping, block_size=self.gptq_block_size)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=self.rounding, gptq=settings),
            plan_of=self._plan,
            elements=[
                rotation_by("regular Hadamard transform of groups of the Linears' inputs"),
                *([rotation_by("random signs")] if self.random_signs else []),
                rounded_by(self.rounding),
            ],
            left_out=[
                "a list of the Linears to rotate for each model: all that are quantized are",
                "padding to whole groups: the group shrinks instead",
                "kernels: execution is simulated",
            ],
        )

    def _plan(self, name: str, linear: nn.Linear) -> LayerPlan:
        generator = layer_generator(name, seed=self.seed) if self.random_signs else None
        plan = hadamard_plan(
            linear, largest=self.group_size, generator=generator, regular=True, parts="groups"
        )
        if plan.transform is None or plan.transform.block_size == self.group_size:
            return plan
        (note,) = plan.notes
        why = f"{self.group_size} does not divide {linear.in_features} input features"
        return replace(plan, notes=(f"{note}: {why}",))
