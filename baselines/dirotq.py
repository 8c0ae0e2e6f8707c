"""DiRotQ: the input's strongest directions in 16 bit, what is left rotated and quantized.

Legend: O output features, I input features.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from baselines.quarot import layer_generator, unsupported_rotation
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
from segquant.core.input_statistics import LayerStatistics
from segquant.core.layer_plan import LayerPlan
from segquant.core.principal import PrincipalBasis, principal_basis
from segquant.core.segments import LayerShape, whole
from segquant.core.transforms import InputTransform


@dataclass(kw_only=True)
class DirotQ:
    """Turn each Linear's input into its principal basis and keep the first directions in 16 bit.

    `Y = (X U1)(W U1)^T + Q(X U2 S) Q(W U2 S)^T`: U1 are the directions of the largest second moment
    of the calibration's inputs (eigenvectors of X^T X, uncentred), a share of the width; U2 are the
    others, mixed by a random orthogonal S. The rest has the bits' scales, GPTQ rounds its weight.
    Source: Sharify et al. 2026, arXiv 2605.16732, for the method; the share of 1/8, S on the rest
    alone and damping 0.01 are those of the code that calls itself official. Its INT4 is per group
    of 64 (`w4a4_int_group64`). With groups, the number of directions is a multiple of theirs.
    Without S, X^T X is diagonal in the basis: GPTQ is then rounding to nearest.
    Layers that read one tensor (q, k, v) have one basis.

    Left out: the layers that the code keeps in 16 bit by name (the bits' `keep` does that); bases
    per head; its fused kernel.
    Unverified: that W U1 stays in 16 bit. The abstract says so of the coefficients X U1 alone.
    Cost: no forward beyond the calibration; an eigendecomposition a layer. At run time I * I
    products a row for the basis, which modulation keeps from being folded, and r O for U1's. The
    basis is counted in 16 bit, once for layers that read one tensor; so are the zero codes under
    U1. Where a basis serves one Linear alone, its I * I numbers weigh more than the codes.
    """

    share: float = 0.125  # of the input features, in 16 bit
    mix: bool = True  # S
    seed: int = 0  # of S; layers of one input draw alike
    rounding: Rounding = Rounding.gptq
    damping: float = 0.01
    block_size: int = 128
    sample_rows: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}; give a part of the width in (0, 1), as 0.125")

    def needs(self) -> StatisticsNeeds:
        return StatisticsNeeds(gram=True, rows=self.sample_rows)

    def unsupported(self, bits: Bits) -> str | None:
        if not bits.weight.quantized:
            return f"dirotq keeps directions of quantized layers in 16 bit; {bits.name} has none"
        return unsupported_rotation(bits)

    def quantize(
        self, denoiser: nn.Module, *, calibration: Calibration, bits: Bits
    ) -> QuantizationReport:
        last: dict[tuple[int, str, int], PrincipalBasis] = {}

        def plan_of(name: str, linear: nn.Linear) -> LayerPlan:
            rank = self.rank_of(linear, bits=bits)
            if rank == 0:
                return LayerPlan(notes=(_too_narrow(linear),))
            seen = calibration.statistics[name]
            key = (id(seen.gram_II), _drawn_as(name, seen), rank)
            if key not in last:
                last.clear()
                last[key] = self._basis(name, seen, rank=rank)
            return self._plan(last[key], rank=rank)

        def shape_of(name: str, linear: nn.Linear) -> LayerShape:
            rank = self.rank_of(linear, bits=bits)
            if rank == 0:
                return whole(in_features=linear.in_features, out_features=linear.out_features)
            # Scales of the rest alone: what is in 16 bit has its own block, of zero weights.
            return LayerShape(
                output=(linear.out_features,),
                input=(rank, linear.in_features - rank),
                one_sided=(False, False),
            )

        return quantize_layers(
            denoiser,
            calibration=calibration,
            bits=bits,
            recipe=self._recipe(rank=0),
            shape_of=shape_of,
            plan_of=plan_of,
            elements=self._elements(),
            left_out=[
                "bases per attention head: every Linear has one of its whole input",
                "layers kept in 16 bit by name: the bits decide",
                *([] if self.mix else ["random rotation of the rest: mix=false"]),
            ],
        )

    def rank_of(self, linear: nn.Linear, *, bits: Bits) -> int:
        """How many directions stay in 16 bit; 0 where the layer has no room for both parts."""
        sizes = [s.group_size for s in (bits.weight, bits.activation) if s.group_size is not None]
        step = max(sizes, default=1)
        rank = max(1, round(self.share * linear.in_features / step)) * step
        return rank if rank < linear.in_features else 0

    def _recipe(self, *, rank: int) -> LayerRecipe:
        return LayerRecipe(
            rounding=self.rounding,
            gptq=GptqSettings(damping=self.damping, block_size=self.block_size),
            low_rank=LowRankSettings(rank=rank, leading=rank > 0),
        )

    def _basis(self, name: str, seen: LayerStatistics, *, rank: int) -> PrincipalBasis:
        if seen.gram_II is None:
            raise ValueError(
                f"{name}: the calibration has no Gram matrix, whose eigenvectors dirotq needs; "
                "calibrate with gram=True"
            )
        drawn = layer_generator(_drawn_as(name, seen), seed=self.seed) if self.mix else None
        return principal_basis(seen.gram_II, rank=rank, generator=drawn)

    def _plan(self, found: PrincipalBasis, *, rank: int) -> LayerPlan:
        note = f"{rank} directions with {found.share:.4g} of the input's energy in 16 bit"
        return LayerPlan(
            recipe=self._recipe(rank=rank),
            transform=InputTransform(rotation_NBB=found.basis_II[None]),
            notes=(note,),
        )

    def _elements(self) -> list[Element | str]:
        why = "no Linear is wide enough for both parts"
        names = [f"the {self.share:g} of the input's directions of most energy in 16 bit"]
        names += ["random rotation of the rest"] if self.mix else []
        done: list[Element | str] = [
            Element(name=one, has=elements.low_rank, otherwise=why) for one in names
        ]
        return [*done, rounded_by(self.rounding)]


def _drawn_as(name: str, seen: LayerStatistics) -> str:
    """One name for all layers that read one tensor."""
    return min(name, *seen.shared_with) if seen.shared_with else name


def _too_narrow(linear: nn.Linear) -> str:
    return f"no direction in 16 bit: {linear.in_features} input features leave no room for a rest"
