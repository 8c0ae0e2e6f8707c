"""Static codes of an input, and the product of a few rows that encodes them on the way.

Legend: M rows (tokens), N output features, K input features, P planes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from segquant.kernels.triton_parts import one_plane, produce, stored_row, two_planes


@triton.jit
def encode_kernel(
    x,  # [M, features], at the segment's first feature
    codes,  # the segment's block, [stored rows, SIZE]
    inverse,  # [P, features], at the segment's first feature
    zero,  # [features], likewise; read by zero_point
    rows,
    FEATURES: tl.constexpr,
    SIZE: tl.constexpr,
    CODE: tl.constexpr,
    BITS: tl.constexpr,
    PRODUCER: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rk = tl.program_id(1) * BK + tl.arange(0, BK)
    kept = rk < SIZE
    inside = (rm[:, None] < rows) & kept[None, :]
    at = rm.to(tl.int64)[:, None] * FEATURES + rk[None, :]
    values = produce(tl.load(x + at, mask=inside, other=0.0).to(tl.float32), PRODUCER)
    first = tl.load(inverse + rk, mask=kept, other=0.0)[None, :]
    if CODE < 2:
        zeros = first
        if CODE == 1:
            zeros = tl.load(zero + rk, mask=kept, other=0.0)[None, :]
        encoded = one_plane(values, first, zeros, CODE, BITS)
        tl.store(codes + rm.to(tl.int64)[:, None] * SIZE + rk[None, :], encoded, mask=inside)
    else:
        second = tl.load(inverse + FEATURES + rk, mask=kept, other=0.0)[None, :]
        upper, lower = two_planes(values, first, second, CODE, BITS)
        # Rows up to a full group of eight are written too: none of a product's tile is undefined.
        whole = (rm[:, None] < (rows + 7) // 8 * 8) & kept[None, :]
        place = codes + stored_row(rm, 0).to(tl.int64)[:, None] * SIZE + rk[None, :]
        tl.store(place, upper, mask=whole)
        tl.store(place + 8 * SIZE, lower, mask=whole)


@triton.jit
def small_kernel(
    x,  # [M, K]
    weight,  # [N, K]
    output,
    inverse,  # [P, K]
    scale,  # [P]
    weight_scale,
    bias,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    DUAL: tl.constexpr,
    BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRODUCER: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Up to 16 rows, encoded by every program for itself: the weight is read once."""
    rm = tl.arange(0, 16)
    rn = tl.program_id(0) * BN + tl.arange(0, BN)
    column = tl.minimum(rn, N - 1)
    rk = tl.arange(0, BK)
    w_at = weight + column.to(tl.int64)[:, None] * K + rk[None, :]
    x_at = x + rm[:, None] * K + rk[None, :]
    sums = tl.zeros((BN, 16), dtype=tl.int32)
    other = tl.zeros((BN, 16), dtype=tl.int32)
    for k in range(0, K, BK):
        kept = rk < K - k
        values = tl.load(x_at, mask=(rm[:, None] < rows) & kept[None, :], other=0.0)
        values = produce(values.to(tl.float32), PRODUCER)
        first = tl.load(inverse + k + rk, mask=kept, other=0.0)[None, :]
        w = tl.load(w_at) if K % BK == 0 else tl.load(w_at, mask=kept[None, :], other=0)
        if DUAL:
            second = tl.load(inverse + K + k + rk, mask=kept, other=0.0)[None, :]
            upper, lower = two_planes(values, first, second, 2, BITS)
            sums = tl.dot(w, tl.trans(upper), sums, out_dtype=tl.int32)
            other = tl.dot(w, tl.trans(lower), other, out_dtype=tl.int32)
        else:
            encoded = one_plane(values, first, 0.0, 0, BITS)
            sums = tl.dot(w, tl.trans(encoded), sums, out_dtype=tl.int32)
        w_at += BK
        x_at += BK
    total = sums.to(tl.float32) * tl.load(scale)
    if DUAL:
        total = total + other.to(tl.float32) * tl.load(scale + 1)
    total = total * tl.load(weight_scale + column)[:, None]
    if HAS_BIAS:
        total = total + tl.load(bias + column)[:, None]
    at = rm[None, :] * N + rn[:, None]
    inside = (rm[None, :] < rows) & (rn[:, None] < N)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)
