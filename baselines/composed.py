"""Rotation, low rank and rounding as three switches of one row: none, some or all of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import nn

from baselines.quarot import hadamard_plan, layer_generator, rotation_by, unsupported_rotation
from segquant.core import (
    Bits,
    Calibration,
    Element,
    GptqSettings,
    LayerRecipe,
    LowRankSettings,
    QuantizationReport,
    Rounding,
    StatisticsNeeds,
    elements,
    quantize_layers,
    rounded_by,
)
from segquant.core.layer_plan import LayerPlan


class Rotation(Enum):
    """Of a Linear's input, in blocks. Member names are what a yaml says."""

    none = "none"
    hadamard = "hadamard"  # Sylvester's blocks after random signs, as QuaRot
    regular = "regular"  # regular blocks without signs, as ConvRot


@dataclass(kw_only=True)
class Composed:
    """What rotation, a low-rank branch and rounding each gain, with nothing else that differs.

    `Y = X' L1 L2 + Q(X') Q(R)`, `X' = X R_h`, `W' = W R_h = L1 L2 + R`: each part may be missing,
    and without any it is rtn. It is no published method: published rows have each part with other
    settings around it (here: no smoothing, no layer in 16 bit).
    Source: of the rotation QuaRot, arXiv 2404.00456, and ConvRot, arXiv 2512.03673; of the branch
    SVDQuant, arXiv 2411.05007; of the rounding GPTQ, arXiv 2210.17323.

    Left out: smoothing, folding, inputs of some layers in 16 bit.
    Cost: the sum of what is switched on: see quarot, svdquant and gptq.
    """

    rotation: Rotation = Rotation.none
    block_size: int = 256  # of the rotation, at most
    seed: int = 0  # of its signs; each layer draws its own
    rank: int = 0
    iterations: int = 1  # of the branch's refinement
    rounding: Rounding = Rounding.rtn
    damping: float = 0.01
    gptq_block_size: int = 128
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if self.block_size < 4 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size={self.block_size}; give a power of two of at least 4")
        self._low_rank()

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=self.rounding.reads_gram, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if self.rank and not bits.weight.quantized:
            return f"rank={self.rank} takes directions off quantized weights; {bits.name} has none"
        return None if self.rotation is Rotation.none else unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        if reason := self.unsupported(bits):
            raise ValueError(reason)
        gptq = GptqSettings(damping=self.damping, block_size=self.gptq_block_size)
        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=LayerRecipe(rounding=self.rounding, gptq=gptq, low_rank=self._low_rank()),
            plan_of=self._plan,
            elements=self._elements(),
            left_out=["smoothing", "kernels: execution is simulated"],
        )

    def _low_rank(self) -> LowRankSettings:
        return LowRankSettings(rank=self.rank, iterations=self.iterations)

    def _plan(self, name: str, linear: nn.Linear) -> LayerPlan:
        if self.rotation is Rotation.none:
            return LayerPlan()
        regular = self.rotation is Rotation.regular
        generator = None if regular else layer_generator(name, seed=self.seed)
        return hadamard_plan(linear, largest=self.block_size, generator=generator, regular=regular)

    def _elements(self) -> list[Element | str]:
        done: list[Element | str] = []
        if self.rotation is not Rotation.none:
            done.append(rotation_by(f"online rotation: {self.rotation.name}"))
        if self.rank:
            name = f"low-rank branch in 16 bit, rank {self.rank}"
            why = "no weight has room for one"
            done.append(Element(name=name, has=elements.low_rank, otherwise=why))
        return [*done, rounded_by(self.rounding)]
