"""A low-rank branch in 16 bit that takes the weight's largest directions off the integer grid.

`Y ~ X (U D)^T + Q(X) Q(W - U D)^T`. The branch reads the input before it is quantized. Its factors
are rounded to their 16-bit type first and the residual is taken from what they then are.
Source: SVDQuant (arXiv 2411.05007), equations 5 to 7, and its iterated refinement.

Legend: O output features, I input features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowRankSettings:
    """Rank 0 is no branch. One iteration is a single truncated SVD."""

    rank: int = 0
    iterations: int = 1

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank={self.rank}; give 0 for no low-rank branch, or more")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}; give at least 1 (a single SVD)")


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
    singular values are shared evenly between the factors so that float16 holds both.
    """
    w = w_OI.double()
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


def low_rank_branch(
    w_OI: Tensor,
    *,
    settings: LowRankSettings,
    dtype: torch.dtype,
    quantized: Callable[[Tensor], Tensor],
    error: Callable[[Tensor, LowRank], float],
) -> LowRank | None:
    """The branch of a (smoothed) weight, or None for rank 0.

    With more than one iteration, L = SVD(W - Q(R)) and R = W - L are taken in turn, the pair with
    the smallest error is kept, and the loop stops when the error rises.

    Args:
        quantized: Q(R) of a residual, float32.
        error: the layer's output error with Q(R) and L.
    """
    if settings.rank == 0:
        return None
    best = truncated_svd(w_OI, rank=settings.rank, dtype=dtype)
    if settings.iterations == 1:
        return best
    residual_OI = quantized(w_OI - best.product())
    best_error = error(residual_OI, best)
    for _ in range(settings.iterations - 1):
        branch = truncated_svd(w_OI - residual_OI, rank=settings.rank, dtype=dtype)
        residual_OI = quantized(w_OI - branch.product())
        found = error(residual_OI, branch)
        if found >= best_error:
            break
        best, best_error = branch, found
    return best
