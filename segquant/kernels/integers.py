"""Products of int8 matrices on any device, every sum exact in int32.

Legend: T rows, N columns of the result, K summed dimension.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# 1024 products of at most 2^14 stay below 2^24, where float32 still holds every integer.
EXACT_CHUNK = 1024
# |code| <= 2^7, so 2^17 products fit int32.
LONGEST_SUM = 2**17


def exact_product(x_TK: Tensor, w_NK: Tensor) -> Tensor:
    """x @ w^T of int8 tensors, int32 [T, N]."""
    if x_TK.shape[-1] >= LONGEST_SUM:
        raise ValueError(f"K={x_TK.shape[-1]}; an int32 sum of int8 products holds {LONGEST_SUM}")
    if x_TK.device.type == "cpu" and int_mm_is_exact():
        return torch._int_mm(x_TK, w_NK.T)
    return chunked_product(x_TK, w_NK)


def chunked_product(x_TK: Tensor, w_NK: Tensor) -> Tensor:
    """The same through float32 products of short pieces: exact on every processor."""
    total_TN = torch.zeros(x_TK.shape[0], w_NK.shape[0], dtype=torch.int32, device=x_TK.device)
    for start in range(0, x_TK.shape[1], EXACT_CHUNK):
        at = slice(start, start + EXACT_CHUNK)
        total_TN += (x_TK[:, at].float() @ w_NK[:, at].float().T).to(torch.int32)
    return total_TN


@cache
def int_mm_is_exact() -> bool:
    """Whether torch._int_mm on this CPU gives what integers give.

    Without VNNI instructions it can saturate in 16 bits and be wrong without a word
    (pytorch#136746), and an environment variable can defeat torch's own guard.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-128, 128, (37, 200), dtype=torch.int8, generator=generator)
    other = torch.randint(-128, 128, (45, 200), dtype=torch.int8, generator=generator)
    extreme = torch.tensor([-128, 127], dtype=torch.int8).repeat(2, 128)
    lowest = torch.full((5, 256), -128, dtype=torch.int8)
    try:
        return all(
            torch.equal(torch._int_mm(x, w.T), chunked_product(x, w))
            for x, w in ((random, other), (extreme, lowest), (lowest, extreme))
        )
    except (RuntimeError, AttributeError):
        return False
