"""The codebook of least squared error for values of a normal law, and the grid that it is.

The levels x_1 < ... < x_n and the thresholds t_i = (x_i + x_(i+1)) / 2 between them satisfy
`x_i = E[z | t_(i-1) < z < t_i]`, z ~ N(0, 1). Source: Lloyd 1982 (IEEE Trans. Inf. Theory 28(2)),
Max 1960 (IRE Trans. Inf. Theory 6(1)).

A code is a level in units of the scale, and the scale is a root mean square: no value sets a step.
The coordinates of a random unit vector of d dimensions, times the root of d, are close to normal
for the widths that Linears have: than with the codebook of their exact law the squared error is
0.4 % larger at d = 64 and 4 bits, 1.7 % at d = 32, 0.002 % at d = 3072. Nothing of a codebook is
stored with a layer: the number of bits says all of it, as it does for e2m1.

Legend: H positive levels, T thresholds, `...` any shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

_TOLERANCE = 1e-10  # of the last step, whose error is its square; more is lost to rounding
_LLOYD_STEPS = 100
_MOST_NEWTON_STEPS = 50
# Panter and Dite: levels of a fine quantizer lie as the cube root of the density does.
_COMPANDED_SPREAD = math.sqrt(3)


@dataclass(frozen=True)
class CodebookGrid:
    """The 2^b levels for N(0, 1), in units of the scale; none of them is zero."""

    num_bits: int

    @property
    def quant_max(self) -> float:
        return lloyd_max_levels(self.num_bits)[-1]

    @property
    def quant_min(self) -> float:
        return -self.quant_max

    def nearest_(self, x: Tensor) -> Tensor:
        """The nearest level, float32, of two the lower; `x` may be overwritten."""
        found: Tensor = self._levels(x.device)[self._index(x)]
        return found

    def store(self, values: Tensor) -> Tensor:
        """Levels by number, the lowest as -2^(b-1): int8."""
        numbers: Tensor = self._index(values) - 2 ** (self.num_bits - 1)
        return numbers.to(torch.int8)

    def restore(self, codes: Tensor) -> Tensor:
        """Levels of such numbers, float32; the inverse of `store`."""
        found: Tensor = self._levels(codes.device)[codes.long() + 2 ** (self.num_bits - 1)]
        return found

    def _levels(self, device: torch.device) -> Tensor:
        return torch.tensor(lloyd_max_levels(self.num_bits), dtype=torch.float32, device=device)

    def _index(self, x: Tensor) -> Tensor:
        levels = lloyd_max_levels(self.num_bits)
        between = [(low + high) / 2 for low, high in pairwise(levels)]
        thresholds = torch.tensor(between, dtype=torch.float32, device=x.device)
        index: Tensor = torch.bucketize(x.float().contiguous(), thresholds)
        return index


@cache
def lloyd_max_levels(num_bits: int) -> tuple[float, ...]:
    """All 2^b levels for N(0, 1), ascending, computed in float64."""
    positive = _positive_levels(2 ** (num_bits - 1)).tolist()
    return (*(-level for level in reversed(positive)), *positive)


def _positive_levels(count: int) -> Tensor:
    """The centroid conditions of the positive half, whose lowest threshold is 0, solved.

    By Lloyd's own steps first, which come near from anywhere and then crawl, then by Newton's.
    """
    spread = torch.arange(count, dtype=torch.float64).add_(0.5).div_(2 * count).add_(0.5)
    levels_H: Tensor = _COMPANDED_SPREAD * torch.special.ndtri(spread)
    for _ in range(_LLOYD_STEPS):
        levels_H = levels_H - _centroid_condition(levels_H).residual_H / _cells(levels_H).mass_H
    for _ in range(_MOST_NEWTON_STEPS):
        condition = _centroid_condition(levels_H)
        step_H = torch.linalg.solve(condition.slope_HH, condition.residual_H)
        while bool((levels_H - step_H).diff(prepend=levels_H.new_zeros(1)).min() <= 0):
            step_H = step_H / 2
        levels_H = levels_H - step_H
        if float(step_H.abs().max()) < _TOLERANCE:
            return levels_H
    raise AssertionError(f"no codebook of {2 * count} levels")


@dataclass(frozen=True)
class _Cells:
    """What lies between neighbouring thresholds."""

    between_T: Tensor  # thresholds but the first, 0, and the last, infinity
    mass_H: Tensor
    density_low_H: Tensor
    density_high_H: Tensor


def _cells(levels_H: Tensor) -> _Cells:
    between = (levels_H[:-1] + levels_H[1:]) / 2
    low = torch.cat([between.new_zeros(1), between])
    high = torch.cat([between, between.new_full((1,), math.inf)])
    return _Cells(
        between_T=between,
        mass_H=torch.special.ndtr(-low) - torch.special.ndtr(-high),  # tails keep their digits
        density_low_H=_density(low),
        density_high_H=_density(high),
    )


@dataclass(frozen=True)
class _Condition:
    residual_H: Tensor  # x_i P(cell i) - E[z; cell i]
    slope_HH: Tensor  # its Jacobian


def _centroid_condition(levels_H: Tensor) -> _Condition:
    cells = _cells(levels_H)
    low, high = cells.density_low_H, cells.density_high_H
    # A threshold moves by half of what either of its levels does; the first and last stay.
    above = (levels_H[:-1] - cells.between_T) * high[:-1] / 2
    below = (cells.between_T - levels_H[1:]) * low[1:] / 2
    own = cells.mass_H.clone()
    own[:-1] += above
    own[1:] += below
    return _Condition(
        residual_H=levels_H * cells.mass_H - (low - high),
        slope_HH=torch.diag(own) + torch.diag(above, 1) + torch.diag(below, -1),
    )


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
