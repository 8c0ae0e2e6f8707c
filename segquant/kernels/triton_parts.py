"""What the Triton kernels share: activation functions, rounding to codes, planes.

Import this where a kernel is about to be compiled, never before: Triton is optional.

Legend: M rows of a tile, N its columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Adding and taking off 1.5 * 2^23 rounds a float32 below 2^22 to the nearest even integer.
ROUNDER = tl.constexpr(12582912.0)
HALF_ROOT = tl.constexpr(0.7071067811865476)
TANH_SCALE = tl.constexpr(-1.5957691216057308)  # -2 sqrt(2 / pi)
TANH_CUBE = tl.constexpr(0.044715)

# Producers and codes by number: constexpr arguments are numbers here.
PRODUCERS = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3}
CODES = {"symmetric": 0, "zero_point": 1, "dual": 2, "dual_wide": 3, "high_low": 4}


@triton.jit
def produce(x, PRODUCER: tl.constexpr):
    if PRODUCER == 1:
        x = x / (1.0 + tl.exp(-x))
    elif PRODUCER == 2:
        x = 0.5 * x * (1.0 + tl.math.erf(x * HALF_ROOT))
    elif PRODUCER == 3:
        x = x / (1.0 + tl.exp((x + x * x * x * TANH_CUBE) * TANH_SCALE))
    return x


@triton.jit
def nearest(units, low, high):
    """Clamped first, then rounded to even; NaN is zero."""
    kept = tl.where(units == units, units, 0.0)
    bounded = tl.minimum(tl.maximum(kept, low), high)
    return (bounded + ROUNDER) - ROUNDER


@triton.jit
def one_plane(x, inverse, zero, CODE: tl.constexpr, BITS: tl.constexpr):
    """A code with a single plane, as int8."""
    most = 2.0 ** (BITS - 1) - 1.0
    below = 2.0 ** (BITS - 1)
    units = x * inverse
    if CODE == 1:
        rounded = nearest(units, -below - zero, most - zero) + zero
    else:
        rounded = nearest(units, -below, most)
    return rounded.to(tl.int8)


@triton.jit
def two_planes(x, first, second, CODE: tl.constexpr, BITS: tl.constexpr):
    """A code with two planes, as int8; `first` and `second` are their reciprocal steps."""
    most = 2.0 ** (BITS - 1) - 1.0
    below = 2.0 ** (BITS - 1)
    if CODE == 2:
        upper = nearest(x * first, 0.0, most).to(tl.int8)
        lower = nearest(x * second, -below, 0.0).to(tl.int8)
    elif CODE == 3:
        upper = (nearest(x * first, 0.0, 255.0) - 128.0).to(tl.int8)
        lower = (nearest(x * second, 0.0, 255.0) - 128.0).to(tl.int8)
    else:
        whole = nearest(x * second, -32639.0, 32639.0).to(tl.int32)
        high = (whole + 128) >> 8
        upper = high.to(tl.int8)
        lower = (whole - (high << 8)).to(tl.int8)
    return upper, lower


@triton.jit
def split_rows(stacked, M: tl.constexpr, N: tl.constexpr):
    """[2 M, N] in groups of eight rows of either plane -> two of [M, N], within a thread."""
    groups = tl.reshape(stacked, (M // 8, 2, 8, N))
    first, second = tl.split(tl.permute(groups, (0, 2, 3, 1)))
    return tl.reshape(first, (M, N)), tl.reshape(second, (M, N))


@triton.jit
def split_columns(stacked, N: tl.constexpr, M: tl.constexpr):
    """[N, 2 M] -> two of [N, M], as `split_rows` does."""
    groups = tl.reshape(stacked, (N, M // 8, 2, 8))
    first, second = tl.split(tl.permute(groups, (0, 1, 3, 2)))
    return tl.reshape(first, (N, M)), tl.reshape(second, (N, M))


@triton.jit
def stored_row(row, PLANE: tl.constexpr):
    """Where a row of a plane lies among stacked ones."""
    return (row // 8) * 16 + PLANE * 8 + row % 8


@triton.jit
def tile_of(pid, num_m, num_n, WIDTH: tl.constexpr):
    """Tiles in blocks of WIDTH rows of tiles, so that neighbours share weights in L2."""
    in_block = WIDTH * num_n
    first = (pid // in_block) * WIDTH
    height = tl.minimum(num_m - first, WIDTH)
    return first + (pid % in_block) % height, (pid % in_block) // height
