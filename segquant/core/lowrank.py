"""A low-rank branch in 16 bit that takes the weight's largest directions off the integer grid.

`Y ~ X (U D)^T + Q(X) Q(W - U D)^T`. The branch reads the input before it is quantized. Its factors
are rounded to their 16-bit type first and the residual is taken from what they then are.
Source: SVDQuant (arXiv 2411.05007), equations 5 to 7, and its iterated refinement.

Legend: O output features, I input features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

# Randomized SVD (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1): it pays
# where the rank is a small part of a large matrix.
SMALLEST_RANDOMIZED = 1024
RANDOMIZED_FRACTION = 8
OVERSAMPLING = 16
POWER_ITERATIONS = 6
SKETCH_SEED = 0


class LowRankBudget(Enum):
    """Whose rank it is. `per_segment` replays the authors' code, which gives every segment the
    rank that SVDQuant gives a layer: up to 12 times the parameters."""

    iso = "iso"
    per_segment = "per_segment"


@dataclass(frozen=True, kw_only=True)
class LowRankSettings:
    """Rank 0 is no branch. One iteration is a single truncated SVD.

    `leading`: the branch carries the first `rank` input features as they are, and the quantized
    weight has zeros there; its down factor is a selection, which is neither stored nor multiplied.
    """

    rank: int = 0
    iterations: int = 1
    early_stop: bool = True  # at the first iteration that is no better; false: all, the best kept
    budget: LowRankBudget = LowRankBudget.iso
    leading: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank}; give 0 for no low-rank branch, or more")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}; give at least 1 (a single SVD)")
        if self.leading and self.iterations > 1:
            raise ValueError(
                f"leading=true with iterations={self.iterations}; the first features are taken "
                "whole and nothing is refined: set iterations=1"
            )

    def parameters(self, *, output: Sequence[int], inputs: Sequence[int]) -> list[int]:
        """Numbers in the down and in the up factor; the zeros between segments are not stored."""
        if self.leading:
            return [0, min(self.rank, sum(inputs)) * sum(output)]
        if self.budget is LowRankBudget.iso:
            output, inputs = (sum(output),), (sum(inputs),)
        pairs = [(o, i, min(self.rank, o, i)) for o in output for i in inputs]
        return [sum(i * rank for _, i, rank in pairs), sum(o * rank for o, _, rank in pairs)]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    up_OR: Tensor
    down_RI: Tensor

    def product(self) -> Tensor:
        """The part of the weight that the branch carries, float32 [O, I]."""
        return self.up_OR.float() @ self.down_RI.float()


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type of the branch of a layer of this type."""
    return torch.bfloat16 if dtype is torch.bfloat16 else torch.float16


def truncated_svd(w_OI: Tensor, *, rank: int, dtype: torch.dtype) -> LowRank:
    """The best approximation of the given rank (clipped to the matrix), factors rounded to `dtype`.

    Singular vectors come from the eigenvectors of the smaller of W W^T and W^T W, in float64; the
    singular values are shared evenly between the factors so that float16 holds both. A rank that is
    a small part of a large matrix is found by a seeded random sketch.
    """
    w = w_OI.double()
    if min(w.shape) >= SMALLEST_RANDOMIZED and rank * RANDOMIZED_FRACTION <= min(w.shape):
        sketch = range_sketch(w_OI.float(), rank=rank)
        approximate = truncated_svd((sketch.T @ w_OI.float()), rank=rank, dtype=torch.float64)
        return LowRank(
            up_OR=(sketch.double() @ approximate.up_OR).to(dtype),
            down_RI=approximate.down_RI.to(dtype),
        )
    wide = w.shape[0] <= w.shape[1]
    vectors = torch.linalg.eigh(w @ w.T if wide else w.T @ w).eigenvectors
    # eigh sorts upwards: the last columns carry the most.
    top = vectors[:, -min(rank, *w.shape) :].flip(1)
    other = top.T @ w if wide else (w @ top).T
    root_R = other.norm(dim=1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    up, down = (
        (top * root_R, other / root_R[:, None])
        if wide
        else (
            (other / root_R[:, None]).T,
            (top * root_R).T,
        )
    )
    return LowRank(up_OR=up.to(dtype), down_RI=down.to(dtype))


def leading_branch(w_OI: Tensor, *, rank: int, dtype: torch.dtype) -> LowRank:
    """The weight's first `rank` input features."""
    down_RI = torch.eye(rank, w_OI.shape[1], device=w_OI.device)
    return LowRank(up_OR=w_OI[:, :rank].to(dtype), down_RI=down_RI.to(dtype))


def range_sketch(w_OI: Tensor, *, rank: int) -> Tensor:
    """Orthonormal columns [O, rank + oversampling] that span nearly all of the top directions."""
    width = min(rank + OVERSAMPLING, *w_OI.shape)
    generator = torch.Generator().manual_seed(SKETCH_SEED)
    draw = torch.randn(w_OI.shape[1], width, generator=generator).to(w_OI)
    basis: Tensor = torch.linalg.qr(w_OI @ draw).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(w_OI @ torch.linalg.qr(w_OI.T @ basis).Q).Q
    return basis


def segmented_svd(
    w_OI: Tensor, *, rank: int, dtype: torch.dtype, output: Sequence[int], inputs: Sequence[int]
) -> LowRank:
    """A truncated SVD of the given rank for each pair of segments, as one branch with zeros."""
    ups, downs = [], []
    rows = torch.split_with_sizes(w_OI, list(output))
    for p, row in enumerate(rows):
        for n, part in enumerate(torch.split_with_sizes(row, list(inputs), -1)):
            branch = truncated_svd(part, rank=rank, dtype=dtype)
            before, after = sum(output[:p]), sum(output[p + 1 :])
            ups.append(torch.nn.functional.pad(branch.up_OR, (0, 0, before, after)))
            before, after = sum(inputs[:n]), sum(inputs[n + 1 :])
            downs.append(torch.nn.functional.pad(branch.down_RI, (before, after)))
    return LowRank(up_OR=torch.cat(ups, 1), down_RI=torch.cat(downs))


def low_rank_branch(
    w_OI: Tensor,
    *,
    output: Sequence[int],
    inputs: Sequence[int],
    settings: LowRankSettings,
    dtype: torch.dtype,
    quantized: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, LowRank], float],
) -> LowRank | None:
    """The branch of a (smoothed) weight, or None for rank 0.

    With more than one iteration, L = SVD(W - Q(R)) and R = W - L are taken in turn, the pair with
    the smallest error is kept, and with early_stop the loop ends when the error rises.

    Args:
        output: sizes of the output segments; they matter to the budget alone.
        inputs: the same of the input.
        quantized: Q(R) of a residual, float32.
        error: the layer's output error with Q(R) and L.
    """
    if settings.rank == 0:
        return None
    if settings.leading:
        return leading_branch(w_OI, rank=min(settings.rank, w_OI.shape[1]), dtype=dtype)

    def svd(target_OI: Tensor) -> LowRank:
        if settings.budget is LowRankBudget.iso:
            return truncated_svd(target_OI, rank=settings.rank, dtype=dtype)
        return segmented_svd(
            target_OI, rank=settings.rank, dtype=dtype, output=output, inputs=inputs
        )

    best = svd(w_OI)
    if settings.iterations == 1:
        return best
    residual_OI = quantized(w_OI - best.product())
    best_error = error(residual_OI, best)
    for _ in range(settings.iterations - 1):
        branch = svd(w_OI - residual_OI)
        residual_OI = quantized(w_OI - branch.product())
        branch_error = error(residual_OI, branch)
        if branch_error < best_error:
            best, best_error = branch, branch_error
        elif settings.early_stop:
            break
    return best
