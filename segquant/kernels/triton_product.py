"""The product of codes with the weight, and all that follows it, in one Triton kernel.

Weights are read as nn.Linear stores them, [N, K], in tiles [BN, BK]: as [BK, BN] int8 spills
hundreds of bytes on sm_80 and sm_86 since Triton 3.8. Two planes are one product over stacked
rows. Segments of the input are unrolled: a loop over them would be fused with the inner one and
spill. The epilogue is `product.coded_product`'s, in its order and without contraction.

Legend: M rows (tokens), N output features, K input features, G groups, S segments, P planes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segquant.kernels.triton_parts import (
    one_plane,
    produce,
    split_rows,
    stored_row,
    tile_of,
    two_planes,
)


@triton.jit
def _sums(
    codes,  # of this group and segment, [stored rows, SIZE]
    weight,  # [N, K], at the segment's first feature
    first_row,
    last_row,
    column,
    SIZE: tl.constexpr,
    K: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """int32 [BM, BN] over one segment. Rows beyond the last repeat it."""
    rm = tl.minimum(first_row + tl.arange(0, BM), last_row)
    rk = tl.arange(0, BK)
    x_at = codes + rm.to(tl.int64)[:, None] * SIZE + rk[None, :]
    w_at = weight + column.to(tl.int64)[:, None] * K + rk[None, :]
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    for k in range(0, SIZE, BK):
        if SIZE % BK == 0:
            x = tl.load(x_at)
            w = tl.load(w_at)
        else:
            inside = rk[None, :] < SIZE - k
            x = tl.load(x_at, mask=inside, other=0)
            w = tl.load(w_at, mask=inside, other=0)
        sums = tl.dot(x, tl.trans(w), sums, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    return sums


@triton.jit
def product_kernel(
    codes,
    weight,
    output,
    scale,  # [G, S, P, M], or [G, S, P] if not TOKEN
    weight_scale,  # [S, N]
    shift,  # [G, S, M]
    column_sum,  # [S, N]
    bias,
    inner,  # [G, M, RANK]
    up,  # [N, RANK]
    tiles,  # [column tiles, 3]: first feature, last + 1, group
    next_inverse,  # [P, N] of the layer that reads the output, with OUT
    rows,
    num_m,
    num_n,
    N: tl.constexpr,
    K: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PLANES: tl.constexpr,
    STARTS: tl.constexpr,  # of each segment: features before it, those in one plane, in two
    WIDE: tl.constexpr,  # planes that the scale has room for
    TOTALS: tl.constexpr,  # features of all segments in one plane, in two
    TOKEN: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILE: tl.constexpr,
    HAS_TILES: tl.constexpr,
    PRODUCER: tl.constexpr,
    OUT: tl.constexpr,  # -1: values; else the code of the next layer's input
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    tile_m, tile_n = tile_of(tl.program_id(0), num_m, num_n, WIDTH)
    if HAS_TILES:
        first = tl.load(tiles + 3 * tile_n)
        stop = tl.load(tiles + 3 * tile_n + 1)
        group = tl.load(tiles + 3 * tile_n + 2)
    else:
        first = tile_n * BN
        stop = N
        group = 0
    rm = tile_m * BM + tl.arange(0, BM)
    rn = first + tl.arange(0, BN)
    column = tl.minimum(rn, stop - 1)
    held = tl.minimum(rm, rows - 1)
    stacked = (rows + 7) // 8 * 16
    size = rows.to(tl.int64) * TOTALS[0] + stacked.to(tl.int64) * TOTALS[1]
    total = 0.0
    for s in tl.static_range(len(SEGMENTS)):
        start = STARTS[s][0]
        before = rows.to(tl.int64) * STARTS[s][1] + stacked.to(tl.int64) * STARTS[s][2]
        block = codes + group * size + before
        steps = scale + (group * len(SEGMENTS) + s) * WIDE * (rows if TOKEN else 1)
        step = tl.load(steps + held)[:, None] if TOKEN else tl.load(steps)
        if PLANES[s] == 2:
            both = _sums(
                block,
                weight + start,
                tile_m * 2 * BM,
                stacked - 1,
                column,
                SEGMENTS[s],
                K,
                2 * BM,
                BN,
                BK,
            )
            upper, lower = split_rows(both, BM, BN)
            second = tl.load(steps + rows + held)[:, None] if TOKEN else tl.load(steps + 1)
            part = upper.to(tl.float32) * step + lower.to(tl.float32) * second
        else:
            sums = _sums(
                block, weight + start, tile_m * BM, rows - 1, column, SEGMENTS[s], K, BM, BN, BK
            )
            part = sums.to(tl.float32) * step
        if HAS_SHIFT:
            shifts = tl.load(shift + (group * len(SEGMENTS) + s) * rows + held)
            part = part + shifts[:, None] * tl.load(column_sum + s * N + column)[None, :]
        part = part * tl.load(weight_scale + s * N + column)[None, :]
        total = part if s == 0 else total + part
    if HAS_BIAS:
        total = total + tl.load(bias + column)[None, :]
    if RANK > 0:
        rr = tl.arange(0, RANK_TILE)
        kept = rr[None, :] < RANK
        row = (group * rows + held).to(tl.int64)[:, None]
        left = tl.load(inner + row * RANK + rr[None, :], mask=kept, other=0.0)
        right = tl.load(up + column[:, None] * RANK + rr[None, :], mask=kept, other=0.0)
        total = total + tl.dot(left, tl.trans(right), input_precision="ieee")
    total = produce(total, PRODUCER)
    inside = (rm[:, None] < rows) & (rn[None, :] < stop)
    if OUT < 0:
        at = rm.to(tl.int64)[:, None] * N + rn[None, :]
        tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)
    else:
        _store_codes(output, total, next_inverse, rm, rn, column, inside, N, OUT)


@triton.jit
def _store_codes(
    output, total, inverse, rm, rn, column, inside, N: tl.constexpr, OUT: tl.constexpr
):
    """The next layer's static codes, where its input is born."""
    first = tl.load(inverse + column)[None, :]
    if OUT < 2:
        at = rm.to(tl.int64)[:, None] * N + rn[None, :]
        tl.store(output + at, one_plane(total, first, 0.0, OUT, 8), mask=inside)
    else:
        second = tl.load(inverse + N + column)[None, :]
        upper, lower = two_planes(total, first, second, OUT, 8)
        at = stored_row(rm, 0).to(tl.int64)[:, None] * N + rn[None, :]
        tl.store(output + at, upper, mask=inside)
        tl.store(output + at + 8 * N, lower, mask=inside)
