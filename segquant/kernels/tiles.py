"""Tile sizes by rule: how well the tiles fill the matrix, and how well they fill the device.

Legend: M rows, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One configuration of a product kernel; bk counts bytes of a row of the weight's tile."""

    bm: int  # tokens: half of a stacked tile's rows
    bn: int
    bk: int
    warps: int
    stages: int
    efficiency: float = 1.0  # of the matrix instructions, relative to the largest tile (a guess)


LARGE = Tile(bm=128, bn=128, bk=128, warps=8, stages=3)
# Two planes double the rows of a tile: the same tiles at half the tokens, in int8's limits of
# registers and shared memory on every device (asserted for six of them by the tests).
SINGLE = (
    LARGE,
    Tile(bm=64, bn=128, bk=128, warps=4, stages=3, efficiency=0.9),
    Tile(bm=64, bn=64, bk=128, warps=4, stages=3, efficiency=0.75),
    Tile(bm=32, bn=64, bk=128, warps=4, stages=3, efficiency=0.5),
    Tile(bm=16, bn=64, bk=128, warps=4, stages=3, efficiency=0.3),
)
STACKED = (
    Tile(bm=64, bn=128, bk=128, warps=8, stages=3),
    Tile(bm=32, bn=128, bk=128, warps=4, stages=3, efficiency=0.9),
    Tile(bm=32, bn=64, bk=128, warps=4, stages=3, efficiency=0.75),
    Tile(bm=16, bn=64, bk=128, warps=4, stages=3, efficiency=0.5),
)
FOUR_BIT = (
    Tile(bm=128, bn=64, bk=64, warps=4, stages=3),
    Tile(bm=64, bn=64, bk=64, warps=4, stages=3, efficiency=0.8),
    Tile(bm=32, bn=64, bk=64, warps=4, stages=3, efficiency=0.5),
)
FOUR_BIT_STACKED = (
    Tile(bm=64, bn=64, bk=64, warps=4, stages=3),
    Tile(bm=32, bn=64, bk=64, warps=4, stages=3, efficiency=0.8),
    Tile(bm=16, bn=64, bk=64, warps=4, stages=3, efficiency=0.5),
)
L2_WIDTH = 8  # rows of tiles that run side by side
SMALL_COLUMNS, SMALL_DEPTH, SMALL_WARPS, SMALL_STAGES = 32, 256, 4, 4
ENCODE_ROWS, ENCODE_COLUMNS, ENCODE_WARPS = 8, 512, 4


def candidates(*, stacked: bool, packed: bool, shifted: bool = False) -> tuple[Tile, ...]:
    """The tiles that a product may take.

    Args:
        shifted: zero points that vary with the rows; the largest single tile then spills on sm_100.
    """
    if packed:
        return FOUR_BIT_STACKED if stacked else FOUR_BIT
    return STACKED if stacked else SINGLE[1:] if shifted else SINGLE


def small_depth(*, dual: bool) -> int:
    """Features that the kernel for few rows takes at once: 256 of two planes would spill."""
    return SMALL_DEPTH // 2 if dual else SMALL_DEPTH


def choose_tile(tiles: Sequence[Tile], *, rows: int, runs: Sequence[int], processors: int) -> Tile:
    """The tile that leaves the least of the device idle.

    Args:
        runs: sizes of the runs of output features that no tile may straddle.
        processors: of the device (SMs).
    """

    def score(tile: Tile) -> float:
        columns = sum(-(-size // tile.bn) for size in runs)
        tiles_needed = -(-rows // tile.bm) * columns
        waves = -(-tiles_needed // processors)
        filled = rows * sum(runs) / (tiles_needed * tile.bm * tile.bn)
        return filled * tiles_needed / (waves * processors) * tile.efficiency

    return max(tiles, key=score)
