"""OrbitQuant: rows by norm and direction, directions rotated at random and put on one codebook."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from baselines.quarot import layer_generator, not_rotated, rotation_by
from segquant.core import (
    TO_NEAREST,
    Bits,
    Calibration,
    Element,
    Granularity,
    LayerRecipe,
    NumberFormat,
    QuantizationReport,
    QuantLinear,
    StatisticsNeeds,
    TensorScheme,
    elements,
    quantize_layers,
)
from segquant.core.layer import QuantizedLayer
from segquant.core.layer_plan import LayerPlan
from segquant.core.schemes import QUANTIZED_BITS, UNQUANTIZED_BITS
from segquant.core.segments import conditioning_of, no_conditioning
from segquant.core.transforms import InputTransform, hadamard_blocks, rotation_block

MODULATION = "modulation"  # the graph's word
MODULATION_GROUP = 64


@dataclass(kw_only=True)
class OrbitQuant:
    """Normalise each row, rotate it at random, and round to a codebook for normal values.

    `Q(x) = ||x|| / sqrt(d) C(sqrt(d) R^T x / ||x||)` for each token x of an input and each row of a
    weight, C the Lloyd-Max codebook of N(0, 1) with as many levels as the bits have codes, and
    `R = P S H`: a random permutation of the channels, random signs, Hadamard blocks. A random
    rotation makes the coordinates of any direction nearly normal, so that one codebook serves
    every layer, step and prompt, and no range is estimated.
    Integer bits become codebooks of as many bits over the same rows or groups; the blocks are the
    largest power of two that divides the width, up to `block_size`; layers of one width share R.
    Inputs of the modulation's Linears (AdaLN, by the static graph) stay in 16 bit, and their
    weights are integers in groups of 64, rounded to nearest and not rotated.
    Source: Lee et al. 2026, arXiv 2607.02461, equations 2 and 4 to 9, appendix B.2.

    Left out: the codebook of the coordinates' exact (beta) law for each width: its normal limit
    (core/lloyd_max.py says what that costs); blocks wider than `block_size`; row norms in bfloat16:
    float32 here. Which embeddings and heads stay in 16 bit is the bits' business (`keep`).
    Cost: no forward and nothing of the calibration (its rows measure the reported error alone, and
    without a `seed` its draw of prompts seeds R, so that draws of a sweep are draws of R); at
    run time an index select, I log2 B additions and a norm a row; log2 I + 1 bits a channel, and
    products of levels, which integer kernels do not have: simulated.
    """

    block_size: int = 1024
    seed: int | None = None  # of each width's permutation and signs; None: the calibration draw's
    modulation_in_16_bit: bool = True
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.block_size < 4 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}; give a power of two of at least 4")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(rows=self.sample_rows, graph=self.modulation_in_16_bit)

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.weight.quantized:
            return f"orbitquant puts weights on a codebook and {bits.name} leaves them in 16 bit"
        if bits.mixed_budget is not None:
            return (
                f"{bits.name} chooses widths by the error of integer codes, and orbitquant has "
                "none; use bits of one width, for example w4a4_int"
            )
        for what, scheme in (("weights", bits.weight), ("activations", bits.activation)):
            if scheme.quantized and (why := _no_codebook(scheme)):
                return (
                    f"orbitquant has a codebook for each row's norm, and {bits.name} {what} {why}"
                )
        return None

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        if self.modulation_in_16_bit and calibration.graph is None:
            raise ValueError(
                "orbitquant with modulation_in_16_bit=true needs the denoiser's static graph and "
                "the calibration has none; set calibration.graph, or modulation_in_16_bit=false"
            )
        coded = replace(
            bits, weight=with_codebook(bits.weight), activation=with_codebook(bits.activation)
        )

        seed = calibration.draw if self.seed is None else self.seed

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            modulation = conditioning_of(calibration.graph, name) == MODULATION
            if self.modulation_in_16_bit and modulation:
                return _modulation_plan(linear, bits=bits)
            return self._plan(linear, seed=seed)

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=coded,
            recipe=LayerRecipe(),
            plan_of=plan_of,
            elements=self._elements(bits, graph=calibration.graph),
            left_out=[
                "a codebook of the exact law for each width: its normal limit",
                f"blocks wider than {self.block_size}",
                "row norms in bfloat16: float32",
                *([] if self.modulation_in_16_bit else ["modulation with inputs in 16 bit"]),
                "kernels: execution is simulated",
            ],
        )

    def _elements(self, bits: Bits, *, graph: object) -> list[Element | str]:
        codebooks = (
            f"Lloyd-Max codebooks for weights in place of {bits.weight.describe()}",
            f"Lloyd-Max codebooks for inputs in place of {bits.activation.describe()}",
        )
        return [
            rotation_by("online rotation by Hadamard blocks with random signs"),
            Element(
                name="random permutation of the channels before it",
                has=elements.reordered,
                otherwise="no layer is rotated",
            ),
            Element(name=codebooks[0], has=_weight_on_codebook, otherwise="no layer has one"),
            Element(
                name=codebooks[1] if bits.activation.quantized else "codebooks for inputs",
                has=_input_on_codebook,
                otherwise=f"{bits.name} leaves every input in 16 bit",
            ),
            *(
                [
                    Element(
                        name="modulation by integer weights alone",
                        has=_by_integer_weights,
                        otherwise=no_conditioning(graph),
                    )
                ]
                if self.modulation_in_16_bit
                else []
            ),
            TO_NEAREST,
        ]

    def _plan(self, linear: nn.Linear, *, seed: int | str) -> LayerPlan:
        features = linear.in_features
        size = rotation_block(features, largest=self.block_size)
        if size == 0:
            return LayerPlan(notes=(f"{not_rotated(linear)}; its codebook stays",))
        generator = layer_generator(f"{features} input features", seed=seed)
        permutation_I = torch.randperm(features, generator=generator).int()
        rotation_NBB = hadamard_blocks(features, block_size=size, generator=generator)
        transform = InputTransform(
            permutation_I=permutation_I, rotation_NBB=rotation_NBB, hadamard=True
        )
        return LayerPlan(transform=transform, notes=(f"permuted, rotated in blocks of {size}",))


def with_codebook(scheme: TensorScheme) -> TensorScheme:
    """The same with a codebook of as many bits in place of integers; 16 bits stay."""
    if not scheme.quantized:
        return scheme
    return replace(scheme, number_format=NumberFormat.lloyd_max)


def _no_codebook(scheme: TensorScheme) -> str | None:
    """Why a codebook of as many bits is not in the place of these codes, or None."""
    if scheme.number_format is NumberFormat.lloyd_max:
        return None
    if scheme.number_format is not NumberFormat.integer or scheme.num_bits not in QUANTIZED_BITS:
        return f"are {scheme.number_format.name}; use integers, for example w4a4_int"
    if scheme.granularity is Granularity.per_tensor:
        return "have one scale per tensor; use per_channel and per_token ones, such as w4a4_int"
    if not scheme.symmetric:
        return "are asymmetric, and its levels are symmetric; set symmetric=true"
    return None


def _modulation_plan(linear: nn.Linear, *, bits: Bits) -> LayerPlan:
    """Weights alone, integers of the run's width in groups; the input stays in 16 bit."""
    weight = TensorScheme(num_bits=bits.weight.num_bits, granularity=Granularity.per_channel)
    note = "modulation: its input stays in 16 bit"
    if linear.in_features % MODULATION_GROUP == 0:
        weight = replace(weight, granularity=Granularity.per_group, group_size=MODULATION_GROUP)
    else:
        note += f"; weights per channel: {MODULATION_GROUP} does not divide {linear.in_features}"
    activation = TensorScheme(num_bits=UNQUANTIZED_BITS)
    return LayerPlan(bits=replace(bits, weight=weight, activation=activation), notes=(note,))


def _weight_on_codebook(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.weight.by_power


def _input_on_codebook(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return quant.spec.activation.by_power


def _by_integer_weights(quant: QuantLinear, entry: QuantizedLayer) -> bool:
    return not quant.spec.weight.by_power
