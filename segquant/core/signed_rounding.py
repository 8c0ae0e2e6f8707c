"""SignRound: rounding and ranges of a weight learned by signed gradient descent on its Gram matrix.

    W_q = s alpha q(W / (s alpha) + V),  V in [-0.5, 0.5] per weight, alpha in [least_range, 1] per
    scale, minimise tr((W_q - W) H (W_q - W)^T), H = X^T X,

V in units of the distance to the next value of the grid. Rounding counts as the identity and a
clipped value as constant, so the gradients are closed forms of E = (W_q - W) H; of each only the
sign is taken, times a step that falls linearly from `learning_rate` (1 / iterations) to nothing.
The best iterate is kept, of each row on its own where rows have their own scales; rounding to
nearest is the first of them, so no row becomes worse on H.
Source: Cheng et al. 2023, arXiv 2309.05516, equations 3 to 5, and its library's defaults.
Otherwise than there: the whole of H takes the place of minibatches of a block's rows, so nothing is
drawn; alpha serves both ends of a range; on floats' grids V is of the binade of the value.

Legend: O output features, I input features, R rows of scales, N blocks of input features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.core.blocks import block_sum, expand_blocks, expand_rows
from segquant.core.floats import (
    E4M3_MAX,
    E4M3_SMALLEST,
    FloatGrid,
    FloatKind,
    nvfp4_tensor_scale,
)
from segquant.core.grids import Grid
from segquant.core.schemes import NumberFormat, TensorScheme
from segquant.core.weights import WeightGrid, WeightScales

LARGEST_SHIFT = 0.5
# exponent of the smallest binade and bits of the mantissa
_BINADES = {FloatKind.e4m3: (-6, 3), FloatKind.e5m2: (-14, 2), FloatKind.e2m1: (0, 1)}


@dataclass(frozen=True, kw_only=True)
class SignRoundSettings:
    iterations: int = 200
    learning_rate: float | None = None  # the first step; None: 1 / iterations
    learn_range: bool = True
    least_range: float = 0.5  # of the range to nearest

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}; give at least 1, usually 200")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(
                f"learning_rate={self.learning_rate}; give a number above 0, or null for "
                "1 / iterations"
            )
        if not 0 < self.least_range <= 1:
            raise ValueError(f"least_range={self.least_range}; give one in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Codes (float32) on their scales, and the error on H over that of rounding to nearest."""

    codes_OI: Tensor
    scales: WeightScales
    remaining: float


def ranges_are_learned(scheme: TensorScheme, settings: SignRoundSettings) -> bool:
    """Whether scales change: those of MX blocks are powers of two, too far apart to descend on."""
    fixed = scheme.microscaled and scheme.number_format is not NumberFormat.nvfp4
    return settings.learn_range and not fixed


@torch.no_grad()
def signround(
    w_OI: Tensor,
    times_gram: Callable[[Tensor], Tensor],
    *,
    scales: WeightScales,
    grid: WeightGrid,
    settings: SignRoundSettings,
) -> Learned:
    """Codes and scales learned from those of rounding to nearest.

    Args:
        times_gram: D [O, I] -> D H, of the rows' own H where rows have several.
    """
    job = _Descent(w_OI.float(), scales=scales, grid=grid)
    own_rows = len(grid.scale_rows) == w_OI.shape[0]
    learns = ranges_are_learned(grid.scheme, settings)
    shift_OI, alpha_RN = torch.zeros_like(job.w_OI), torch.ones_like(scales.scale)
    first = settings.learning_rate or 1 / settings.iterations
    best: tuple[Tensor, Tensor, Tensor] | None = None
    start = 0.0
    for number in range(settings.iterations + 1):
        trial = job.trial(shift_OI, alpha_RN)
        pull_OI = times_gram(trial.wrong_OI)
        error_O = (trial.wrong_OI * pull_OI).sum(1)
        error = error_O if own_rows else error_O.sum()[None]
        if best is None:
            start = float(error.sum())
            best = error, trial.codes_OI, trial.scale_RN
        else:
            better = error < best[0]
            wide = better[:, None]
            best = (
                torch.where(better, error, best[0]),
                torch.where(wide, trial.codes_OI, best[1]),
                torch.where(wide, trial.scale_RN, best[2]),
            )
        step = first * (1 - number / settings.iterations)
        shift_OI -= step * (pull_OI * trial.inside_OI).sign_()
        shift_OI.clamp_(-LARGEST_SHIFT, LARGEST_SHIFT)
        if learns:
            alpha_RN -= step * job.slope(pull_OI, trial).sign_()
            alpha_RN.clamp_(settings.least_range, 1)
    assert best is not None
    error, codes_OI, scale_RN = best
    return Learned(
        codes_OI=codes_OI,
        scales=WeightScales(scale=scale_RN, zero_point=scales.zero_point),
        remaining=float(error.sum()) / start if start > 0 else 1.0,
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    codes_OI: Tensor
    scale_RN: Tensor
    wrong_OI: Tensor  # W_q - W
    slope_OI: Tensor  # of W_q by its scale
    inside_OI: Tensor  # bool: not clipped


class _Descent:
    """A weight, its grid, and what a shift and a share of the range make of it."""

    def __init__(self, w_OI: Tensor, *, scales: WeightScales, grid: WeightGrid) -> None:
        self.w_OI, self._grid, self._base_RN = w_OI, grid, scales.scale
        self._tensor_scale: Tensor | None = None
        if grid.scheme.number_format is NumberFormat.nvfp4:  # whose blocks' scales stay on e4m3
            amax = w_OI.abs().amax()
            self._tensor_scale = nvfp4_tensor_scale(amax, rule=grid.scheme.scale_rule)
        wide = scales.per_weight(grid).zero_point
        self._zero_OI = torch.zeros((), device=w_OI.device) if wide is None else wide

    def trial(self, shift_OI: Tensor, alpha_RN: Tensor) -> _Trial:
        codes, scale_RN = self._grid.codes, self._scale(alpha_RN)
        scale_OI = self._spread(scale_RN)
        units_OI = self.w_OI / scale_OI
        wanted_OI = units_OI + shift_OI * spacing(units_OI, grid=codes)
        if isinstance(codes, FloatGrid):
            inside_OI = wanted_OI.abs() <= codes.quant_max
            code_OI = codes.nearest_(wanted_OI)
        else:
            code_OI = wanted_OI.round_() + self._zero_OI
            inside_OI = (code_OI >= codes.quant_min) & (code_OI <= codes.quant_max)
            code_OI.clamp_(codes.quant_min, codes.quant_max)
        value_OI = code_OI - self._zero_OI
        return _Trial(
            codes_OI=code_OI,
            scale_RN=scale_RN,
            wrong_OI=value_OI * scale_OI - self.w_OI,
            slope_OI=value_OI - units_OI * inside_OI,
            inside_OI=inside_OI,
        )

    def slope(self, pull_OI: Tensor, trial: _Trial) -> Tensor:
        """The error's derivative by each scale, up to a positive factor, [R, N]."""
        slope_ON = block_sum(pull_OI * trial.slope_OI, self._grid.blocks)
        return block_sum(slope_ON.T, self._grid.scale_rows).T

    def _spread(self, scale_RN: Tensor) -> Tensor:
        return expand_blocks(expand_rows(scale_RN, self._grid.scale_rows), self._grid.blocks)

    def _scale(self, alpha_RN: Tensor) -> Tensor:
        if self._tensor_scale is None:
            return self._base_RN * alpha_RN
        units_RN = self._base_RN * alpha_RN / self._tensor_scale
        kept_RN = units_RN.clamp(E4M3_SMALLEST, E4M3_MAX).to(torch.float8_e4m3fn).float()
        # A block of zeros has the scale 1, which is no e4m3 number times the tensor's.
        return torch.where(alpha_RN == 1, self._base_RN, kept_RN * self._tensor_scale)


def spacing(units: Tensor, *, grid: Grid) -> Tensor | float:
    """The distance between the grid's values around each of these, in units of the scale."""
    if not isinstance(grid, FloatGrid):
        return 1.0
    least, mantissa = _BINADES[grid.kind]
    size = units.abs().clamp(2.0**least, grid.quant_max)  # zero has no exponent
    exponent = torch.frexp(size).exponent - 1
    return torch.exp2((exponent - mantissa).float())
