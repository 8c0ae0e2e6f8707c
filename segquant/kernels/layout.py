"""How codes lie in memory: two planes stacked in groups of rows, two 4-bit codes in a byte.

Legend: T rows, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# A thread of a matrix instruction (mma.sync, wgmma) holds rows i and i + 8 of the result: rows of
# two planes in groups of eight meet in one thread, and their sum needs no exchange.
GROUP = 8
HALF_BYTE = 4


def stored_rows(rows: int, planes: int) -> int:
    """Rows that `stack_planes` makes of `rows` rows."""
    return rows if planes == 1 else -(-rows // GROUP) * 2 * GROUP


def stack_planes(planes: Sequence[Tensor]) -> Tensor:
    """[T, K] each -> [stored_rows, K]: eight rows of the first plane, eight of the second, ..."""
    if len(planes) == 1:
        return planes[0]
    rows, features = planes[0].shape
    groups = -(-rows // GROUP)
    padded = [F.pad(plane, (0, 0, 0, groups * GROUP - rows)) for plane in planes]
    pairs = torch.stack([plane.view(groups, GROUP, features) for plane in padded], 1)
    return pairs.view(groups * len(planes) * GROUP, features)


def split_planes(stacked: Tensor, *, rows: int, planes: int) -> list[Tensor]:
    """The planes of `stack_planes`, or of a product with it, [T, ...] each."""
    if planes == 1:
        return [stacked]
    groups = stacked.view(-1, planes, GROUP, stacked.shape[-1])
    return [groups[:, at].reshape(-1, stacked.shape[-1])[:rows] for at in range(planes)]


def pack_halves(codes_NK: Tensor) -> Tensor:
    """4-bit codes, feature k in the low and feature k + K/2 in the high half of byte k.

    Both halves come out as contiguous runs of features, without interleaving.
    """
    features = codes_NK.shape[-1]
    assert features % 2 == 0, features
    nibbles = codes_NK.to(torch.int16) & 0xF
    half = features // 2
    return (nibbles[..., :half] | (nibbles[..., half:] << HALF_BYTE)).to(torch.uint8)


def unpack_halves(packed: Tensor) -> Tensor:
    """Codes as int8 [N, K]; the inverse of `pack_halves`."""
    signed = packed.view(torch.int8)
    # Arithmetic shifts carry the sign: up to the top of the byte and back.
    low = (signed << HALF_BYTE) >> HALF_BYTE
    return torch.cat([low, signed >> HALF_BYTE], -1)
