"""Blocks: runs of neighbouring features that share a scale (segments, groups, or everything).

Legend: `...` any leading dimensions, I input features, N blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_min(x_I: Tensor, sizes: Sequence[int]) -> Tensor:
    """Smallest value of each block of the last dimension: [..., I] -> [..., N]."""
    if _equal(sizes):
        return _cut(x_I, sizes).amin(-1)
    return torch.stack([part.amin(-1) for part in torch.split_with_sizes(x_I, list(sizes), -1)], -1)


def block_max(x_I: Tensor, sizes: Sequence[int]) -> Tensor:
    """Largest value of each block of the last dimension: [..., I] -> [..., N]."""
    if _equal(sizes):
        return _cut(x_I, sizes).amax(-1)
    return torch.stack([part.amax(-1) for part in torch.split_with_sizes(x_I, list(sizes), -1)], -1)


def block_sum(x_I: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum of each block of the last dimension: [..., I] -> [..., N]."""
    if _equal(sizes):
        return _cut(x_I, sizes).sum(-1)
    return torch.stack([part.sum(-1) for part in torch.split_with_sizes(x_I, list(sizes), -1)], -1)


def block_power(x_I: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean square of each block of the last dimension: [..., I] -> [..., N]; float32."""
    squares = block_sum(x_I.float().square(), sizes)
    if _equal(sizes):
        return squares / sizes[0]
    return squares / torch.tensor(sizes, dtype=torch.float32, device=squares.device)


def expand_blocks(value_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each block's value at each of its features, [..., N] -> [..., I]; one stays [..., 1]."""
    if len(sizes) == 1:
        return value_N
    if _equal(sizes):
        return value_N.repeat_interleave(sizes[0], -1)
    lead = value_N.shape[:-1]
    parts = [value_N[..., n : n + 1].expand(*lead, size) for n, size in enumerate(sizes)]
    return torch.cat(parts, -1)


def expand_rows(value_PN: Tensor, sizes: Sequence[int]) -> Tensor:
    """Each row block's values at each of its rows: [P, N] -> [O, N]; one block stays [1, N]."""
    return expand_blocks(value_PN.T, sizes).T


def group_blocks(features: int, *, group_size: int, layer: str = "layer") -> tuple[int, ...]:
    """Equal groups along the input features.

    Raises:
        ValueError: `group_size` does not divide `features`.
    """
    if features % group_size:
        divisors = [size for size in (16, 32, 64, 128, 256) if features % size == 0]
        advice = f"use one of {divisors}" if divisors else f"use a divisor of {features}"
        raise ValueError(
            f"{layer}: in_features={features} is not a multiple of group_size={group_size}; "
            f"{advice}, or name the layer in bits.keep"
        )
    return (group_size,) * (features // group_size)


def padded_blocks(features: int, *, group_size: int) -> tuple[int, ...]:
    """Equal groups and, where they do not fit, a shorter last one: as if padded with zeros."""
    full, rest = divmod(features, group_size)
    return (group_size,) * full + ((rest,) if rest else ())


def _cut(x_I: Tensor, sizes: Sequence[int]) -> Tensor:
    return x_I.reshape(*x_I.shape[:-1], len(sizes), sizes[0])


def _equal(sizes: Sequence[int]) -> bool:
    return sizes.count(sizes[0]) == len(sizes)
