"""Where a layer's outputs go: which of its output channels are read together.

Every layer call opens a space; a code is a channel of a space, 0 means no channel of any layer.
Spaces that are added channel by channel are joined: what reads the sum reads them all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from segquant.graph.shadow import along, core, distinct_rows
from segquant.graph.trace import Ref

_SHIFT = 24
_MASK = (1 << _SHIFT) - 1
NO_CODE = 0


class Read(NamedTuple):
    """Channels [low, high) read at once, through the tensor `ref`.

    `scattered` lists them where they are not all of [low, high).
    """

    low: int
    high: int
    ref: Ref
    scattered: tuple[int, ...] = ()


class Channels:
    """The spaces of one analysis and what was read of each."""

    def __init__(self) -> None:
        self._joined = [0]
        self._reads: list[list[Read]] = [[]]

    def open(self, shape: tuple[int, ...], *, dim: int) -> tuple[int, Tensor]:
        """A new space, and its codes laid along `dim` of a layer's output."""
        space = len(self._joined)
        self._joined.append(space)
        self._reads.append([])
        codes = torch.arange(shape[dim], dtype=torch.int64) | (space << _SHIFT)
        return space, along(codes, shape, dim=dim)

    def read(self, codes: Tensor, ref: Ref) -> None:
        """Notes that an operation reads the channels of `ref` as a whole."""
        labels = distinct_rows(codes).reshape(-1)
        labels = labels[labels != NO_CODE]
        if labels.numel() == 0:
            return
        spaces, channels = labels >> _SHIFT, labels & _MASK
        for space in torch.unique(spaces).tolist():
            own = torch.unique(channels[spaces == space])
            low, high = int(own[0]), int(own[-1]) + 1
            scattered = tuple(own.tolist()) if own.numel() < high - low else ()
            self._reads[space].append(Read(low, high, ref, scattered))

    def join(self, a: Tensor, b: Tensor) -> bool:
        """Joins the spaces of two tensors that are added, if their channels match one to one."""
        rows_a, rows_b = core(a), core(b)
        if not bool((((rows_a & _MASK) == (rows_b & _MASK)) & (rows_a > 0) & (rows_b > 0)).all()):
            return False
        pairs = ((rows_a >> _SHIFT) << _SHIFT) | (rows_b >> _SHIFT)
        for pair in torch.unique(pairs).tolist():
            self._joined[self._root(pair >> _SHIFT)] = self._root(pair & _MASK)
        return True

    def _root(self, space: int) -> int:
        while self._joined[space] != space:
            space = self._joined[space]
        return space

    def reads(self) -> dict[int, list[Read]]:
        """Per space, what was read of it and of every space joined with it."""
        groups: dict[int, dict[tuple[int, int, tuple[int, ...]], Read]] = {}
        for space, reads in enumerate(self._reads):
            group = groups.setdefault(self._root(space), {})
            for read in reads:
                group.setdefault((read.low, read.high, read.scattered), read)
        return {
            space: list(groups[self._root(space)].values()) for space in range(1, len(self._joined))
        }


def output_cuts(reads: list[Read], *, size: int) -> dict[int, Read]:
    """Cuts between channels that are never read together, each with a read that ends there.

    Reads that overlap are one, such as the even and the odd channels of a rotary embedding; if
    they leave gaps even so, their ends cut nothing.
    """
    cuts: dict[int, Read] = {}
    for group in _overlapping(sorted(reads, key=lambda read: read[:2])):
        low, high = group[0].low, max(read.high for read in group)
        if not _covers(group, low, high):
            continue
        for cut in (low, high):
            if 0 < cut < size:
                cuts.setdefault(cut, group[0])
    return cuts


def _overlapping(reads: list[Read]) -> list[list[Read]]:
    groups: list[list[Read]] = []
    end = 0
    for read in reads:
        if groups and read.low < end:
            groups[-1].append(read)
        else:
            groups.append([read])
        end = max(end, read.high)
    return groups


def _covers(reads: list[Read], low: int, high: int) -> bool:
    if not any(read.scattered for read in reads):
        return True
    channels: set[int] = set()
    for read in reads:
        channels.update(read.scattered or range(read.low, read.high))
    return len(channels) == high - low
