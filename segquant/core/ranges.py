"""The range that a scale reaches: all values, all but the furthest, or what costs least error.

`percentile` leaves the furthest values beyond either end to be clipped. `mse` shrinks the range of
all values by common factors and keeps, for each scale, the one of least squared error; under
DualScale either end has a scale, and a factor, of its own.

Legend: T sampled rows, K values of one scale, N blocks of input features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

SHRINK_STEP = 0.02
SHRINK_TRIES = 36  # from 1 down to 0.3


class RangeRule(Enum):
    """Member names are what a yaml says."""

    amax = "amax"
    percentile = "percentile"
    mse = "mse"


def tails(values_K: Tensor, *, percentile: float) -> tuple[Tensor, Tensor]:
    """Values at both ends of the last dimension, [..., K] -> two of [...]; nearest ranks."""
    count = values_K.shape[-1]
    rank = min(count, max(1, math.ceil(count * percentile / 100)))
    high = values_K.kthvalue(rank, -1).values
    return values_K.kthvalue(count + 1 - rank, -1).values, high


def block_tails(x_TI: Tensor, sizes: Sequence[int], *, percentile: float) -> tuple[Tensor, Tensor]:
    """`tails` of each block of input features over all rows: two of [N]."""
    parts = torch.split_with_sizes(x_TI, list(sizes), -1)
    ends = [tails(part.reshape(-1), percentile=percentile) for part in parts]
    return torch.stack([low for low, _ in ends]), torch.stack([high for _, high in ends])


def least_error(
    low: Tensor, high: Tensor, *, error: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The range, shrunk for each scale so that its error is least; the whole range wins ties.

    Args:
        error: squared error per scale of a range, in the shape of `low`.
    """
    factor = _best_factor(lambda shrink: error(low * shrink, high * shrink))
    return low * factor, high * factor


def least_error_apart(
    low: Tensor, high: Tensor, *, error: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The same with a factor for either end, where no value's error depends on both."""
    low = low * _best_factor(lambda shrink: error(low * shrink, high))
    return low, high * _best_factor(lambda shrink: error(low, high * shrink))


def _best_factor(error: Callable[[float], Tensor]) -> Tensor:
    best = error(1.0)
    factor = torch.ones_like(best)
    for n in range(1, SHRINK_TRIES):
        shrink = 1.0 - SHRINK_STEP * n
        shrunk_error = error(shrink)
        factor = torch.where(shrunk_error < best, shrink, factor)
        best = torch.minimum(shrunk_error, best)
    return factor
