"""4-bit weights times 8-bit codes: the transposed product, with the weight on the left.

On the left an unpacked weight stays in registers. A byte holds features k and k + K/2; shifted to
the top of the byte either is sixteen times its code, which the sum gives back exactly.

Legend: M rows (tokens), N output features, K input features, G groups, P planes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segquant.kernels.triton_parts import split_columns, tile_of


@triton.jit
def product_w4_kernel(
    codes,
    weight,  # int8 view of the packed bytes, [N, K / 2]
    output,
    scale,  # [G, P, M], or [G, P] if not TOKEN
    weight_scale,  # [N]
    shift,  # [G, M]
    column_sum,  # [N]
    bias,
    inner,  # [G, M, RANK]
    up,  # [N, RANK]
    tiles,  # [column tiles, 3]: first feature, last + 1, group
    rows,
    num_m,
    num_n,
    N: tl.constexpr,
    HALF: tl.constexpr,  # K / 2
    PLANES: tl.constexpr,
    TOKEN: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILE: tl.constexpr,
    HAS_TILES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,  # bytes of a row of the weight's tile
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
    stored = rows if PLANES == 1 else (rows + 7) // 8 * 16
    block = codes + group * stored.to(tl.int64) * 2 * HALF
    row = tl.minimum(tile_m * BM * PLANES + tl.arange(0, BM * PLANES), stored - 1)
    rk = tl.arange(0, BK)
    x_at = block + row.to(tl.int64)[:, None] * (2 * HALF) + rk[None, :]
    w_at = weight + column.to(tl.int64)[:, None] * HALF + rk[None, :]
    sums = tl.zeros((BN, BM * PLANES), dtype=tl.int32)
    for k in range(0, HALF, BK):
        inside = rk[None, :] < HALF - k
        if HALF % BK == 0:
            packed = tl.load(w_at)
            x_low = tl.load(x_at)
            x_high = tl.load(x_at + HALF)
        else:
            packed = tl.load(w_at, mask=inside, other=0)
            x_low = tl.load(x_at, mask=inside, other=0)
            x_high = tl.load(x_at + HALF, mask=inside, other=0)
        low = (packed << 4).to(tl.int8)
        high = (packed & -16).to(tl.int8)
        sums = tl.dot(low, tl.trans(x_low), sums, out_dtype=tl.int32)
        sums = tl.dot(high, tl.trans(x_high), sums, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    sums = sums >> 4
    steps = scale + group * PLANES * (rows if TOKEN else 1)
    step = tl.load(steps + held)[None, :] if TOKEN else tl.load(steps)
    if PLANES == 2:
        upper, lower = split_columns(sums, BN, BM)
        second = tl.load(steps + rows + held)[None, :] if TOKEN else tl.load(steps + 1)
        total = upper.to(tl.float32) * step + lower.to(tl.float32) * second
    else:
        total = sums.to(tl.float32) * step
    if HAS_SHIFT:
        shifts = tl.load(shift + group * rows + held)
        total = total + shifts[None, :] * tl.load(column_sum + column)[:, None]
    total = total * tl.load(weight_scale + column)[:, None]
    if HAS_BIAS:
        total = total + tl.load(bias + column)[:, None]
    if RANK > 0:
        rr = tl.arange(0, RANK_TILE)
        kept = rr[None, :] < RANK
        at = (group * rows + held).to(tl.int64)[:, None] * RANK + rr[None, :]
        right = tl.load(inner + at, mask=kept, other=0.0)
        left = tl.load(up + column[:, None] * RANK + rr[None, :], mask=kept, other=0.0)
        total = total + tl.dot(left, tl.trans(right), input_precision="ieee")
    at = rm.to(tl.int64)[None, :] * N + rn[:, None]
    inside = (rm[None, :] < rows) & (rn[:, None] < stop)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)
