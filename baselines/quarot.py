"""QuaRot's online rotation: a Hadamard transform before every quantized Linear."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from segquant.core import (
    Bits,
    Calibration,
    Element,
    GptqSettings,
    LayerRecipe,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    elements,
    quantize_layers,
    rounded_by,
)
from segquant.core.layer_plan import LayerPlan
from segquant.core.transforms import (
    SMALLEST_ROTATION,
    InputTransform,
    hadamard_blocks,
    regular_block,
    rotation_block,
)


@dataclass(kw_only=True)
class QuaRot:
    """Rotate each Linear's input by a randomized Hadamard matrix, so that outliers spread.

    `X W^T = (X R)(W R)^T`, R = D H with random signs D and Hadamard blocks H; then weights and
    activations are quantized as the bits say.
    Source: Ashkboos et al. 2024, arXiv 2404.00456. The block is the largest power
    of two up to `block_size` that divides the input features; the paper has the whole width and
    language models, the default of 256 is what diffusion users take for online rotations.
    In a diffusion transformer R cannot be folded into the previous layer: the modulation's scale
    and shift, which differ from sample to sample, stand between. So all rotations are online.

    Left out: folded rotations (above), rotated queries and keys (attention is not quantized), the
    clipping of activations to 0.9 of their range (the bits decide the range).
    Cost: no forward; I log2 B additions a row at run time, one bit of storage per channel.
    """

    block_size: int = 256
    random_signs: bool = True
    seed: int = 0  # of the signs; each layer draws its own
    rounding: Rounding = Rounding.gptq  # as the paper's main rows; rtn is its ablation
    damping: float = 0.01
    gptq_block_size: int = 128
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.block_size < 4 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}; give a power of two of at least 4")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=self.rounding.reads_gram, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        return unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        settings = GptqSettings(damping=self.damping, block_size=self.gptq_block_size)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=self.rounding, gptq=settings),
            plan_of=self._plan,
            elements=[
                rotation_by("online Hadamard rotation of the Linears' inputs"),
                *([rotation_by("random signs")] if self.random_signs else []),
                rounded_by(self.rounding),
            ],
            left_out=[
                "rotations folded into weights: modulation stands between (see the docstring)",
                "rotated queries and keys: attention is not quantized",
                "clipping ratio 0.9",
            ],
        )

    def _plan(self, name: str, linear: nn.Linear) -> LayerPlan:
        generator = layer_generator(name, seed=self.seed) if self.random_signs else None
        return hadamard_plan(linear, largest=self.block_size, generator=generator)


def hadamard_plan(
    linear: nn.Linear,
    *,
    largest: int,
    generator: torch.Generator | None,
    regular: bool = False,
    parts: str = "blocks",
) -> LayerPlan:
    """A layer whose input is rotated by Hadamard blocks, with a note of their size.

    Args:
        largest: the size that blocks have at most; they divide the input features.
        generator: of random signs before the blocks; None for none.
        regular: blocks without a column of ones, whose sizes are powers of four.
        parts: what the note calls them.
    """
    block_of = regular_block if regular else rotation_block
    size = block_of(linear.in_features, largest=largest)
    if size == 0:
        return LayerPlan(notes=(not_rotated(linear),))
    rotation_NBB = hadamard_blocks(
        linear.in_features, block_size=size, generator=generator, regular=regular
    )
    return LayerPlan(
        transform=InputTransform(rotation_NBB=rotation_NBB, hadamard=True),
        notes=(f"rotated in {parts} of {size}",),
    )


def not_rotated(linear: nn.Linear) -> str:
    """Why a layer's input is not rotated, for its notes."""
    return (
        f"not rotated: {linear.in_features} input features are not divisible by {SMALLEST_ROTATION}"
    )


def rotation_by(name: str) -> Element:
    """An element that the rotated layers have."""
    why = f"no Linear's number of input features is divisible by {SMALLEST_ROTATION}"
    return Element(name=name, has=elements.rotated, otherwise=why)


def layer_generator(name: str, *, seed: int | str) -> torch.Generator:
    """A CPU generator that depends on the seed and the layer's name, not on the layers' order."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def unsupported_rotation(bits: Bits) -> str | None:
    """Why an input that is rotated cannot have these bits, or None."""
    if bits.activation.quantized and not bits.activation.dynamic:
        return (
            f"{bits.name} has static activation scales, and the calibration knows the range of "
            "the input before its rotation only; use bits with dynamic activations"
        )
    return None
