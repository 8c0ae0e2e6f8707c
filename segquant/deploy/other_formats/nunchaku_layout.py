"""The order in which nunchaku's kernels read 4-bit weights, scales and low-rank factors.

Values lie as the tensor cores' fragments take them: a warp's 32 lanes are 8 rows (l) times 4 runs
of columns (m), and each lane holds two halves of rows (s) and of columns (t).
Source: the packing that DeepCompressor and diffuse-compressor document for the kernels
(docs/nunchaku_weight_packing.md of the latter), and the PTX ISA's figures of mma.m16n8k64 and
mma.m16n8k16; written from these, and compared in the tests with a reading lane by lane.

Legend: O output features, I input features, G groups of input features, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ROWS = 128
TILE_COLUMNS = 128  # two steps of 64: the kernel unrolls two
RANK_STEP = 16


def tile_codes(codes_OI: Tensor) -> Tensor:
    """int4 codes, two in a byte: int8 [O, I/2]."""
    rows, columns = codes_OI.shape
    # row = 128 n + 16 p + 8 s + l, column = 64 k + 32 t + 8 m + e
    nibbles = (codes_OI & 0xF).to(torch.uint8)
    parts = nibbles.reshape(rows // 128, 8, 2, 8, columns // 64, 2, 4, 8)  # n p s l k t m e
    ordered = parts.permute(0, 4, 1, 3, 6, 2, 5, 7)  # n k p l m s t e
    packed = ordered[..., 0::2] | (ordered[..., 1::2] << 4)
    return packed.contiguous().view(torch.int8).reshape(rows, columns // 2)


def tile_scales(scale_OG: Tensor) -> Tensor:
    """Scales of rows and groups, [G, O]."""
    rows, groups = scale_OG.shape
    # row = 128 n + 16 a + 8 b + 2 c + d
    parts = scale_OG.reshape(rows // 128, 8, 2, 4, 2, groups)  # n a b c d g
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(groups, rows)  # n g a c b d


def tile_vector(value: Tensor) -> Tensor:
    """One value per feature, as a bias or a smoothing vector."""
    return tile_scales(value[:, None]).reshape(-1)


def tile_down(down_RI: Tensor) -> Tensor:
    """The low-rank branch's first factor, [I, R]."""
    rank, columns = down_RI.shape
    # row = 16 q + 8 s + l, column = 16 k + 8 t + 2 m + e
    parts = down_RI.reshape(rank // 16, 2, 8, columns // 16, 2, 4, 2)  # q s l k t m e
    return parts.permute(3, 0, 2, 5, 1, 4, 6).reshape(columns, rank)  # k q l m s t e


def tile_up(up_OR: Tensor) -> Tensor:
    """The low-rank branch's second factor, [O, R]."""
    rows, rank = up_OR.shape
    # row = 16 n + 8 s + l, column = 16 q + 8 t + 2 m + e
    parts = up_OR.reshape(rows // 16, 2, 8, rank // 16, 2, 4, 2)  # n s l q t m e
    return parts.permute(0, 3, 2, 5, 1, 4, 6).reshape(rows, rank)  # n q l m s t e
