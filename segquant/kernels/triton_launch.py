"""Launches of the Triton kernels: grids, tiles, constants. No host synchronisation anywhere.

Every kernel runs without contraction of products and sums, so that its bits are those of plain
torch. Triton is imported here and nowhere above: `segquant` works without it.

Legend: T rows, I input features, N output features, G distinct smoothing vectors, S segments of
the input, P planes, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from segquant.kernels import tiles as rules
from segquant.kernels.layout import stored_rows
from segquant.kernels.product import CodedProduct
from segquant.kernels.tiles import Tile

SMALLEST_RANK_TILE = 16


def product(
    job: CodedProduct,
    *,
    dtype: torch.dtype,
    tile: Tile | None = None,
    producer: str = "none",
    next_code: str | None = None,
    next_inverse_PN: Tensor | None = None,
) -> Tensor:
    """`operators.coded_product` on a GPU.

    Args:
        tile: None for the rule's.
        producer: applied to the output; an activation between two layers.
        next_code: give the codes of the layer that reads the output, flat, not the output.
        next_inverse_PN: with it, the reciprocals of that layer's static steps.
    """
    features, rows = job.out_features, job.rows
    assert not (job.packed and (next_code or producer != "none")), "no epilogue for 4-bit weights"
    sizes = list(job.run_sizes)
    if tile is None:
        tile = _tile(job)
    output = _output(job.codes, rows, features, dtype, next_code)
    if rows == 0:
        return output
    table = None if len(sizes) == 1 else tile_table(tuple(job.runs), tile.bn, job.codes.device)
    num_m, num_n = -(-rows // tile.bm), sum(-(-size // tile.bn) for size in sizes)
    rank = 0 if job.up_NR is None else job.up_NR.shape[1]
    shared: dict[str, Any] = {
        "rows": rows,
        "num_m": num_m,
        "num_n": num_n,
        "N": features,
        "TOKEN": job.scale_GSPT.shape[-1] > 1,
        "HAS_SHIFT": job.shift_GST is not None,
        "HAS_BIAS": job.bias_N is not None,
        "RANK": rank,
        "RANK_TILE": rank_tile(rank),
        "HAS_TILES": table is not None,
        "BM": tile.bm,
        "BN": tile.bn,
        "BK": tile.bk,
        "WIDTH": rules.L2_WIDTH,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": False,
    }
    # A pointer that is not read still has to be one: the codes stand in.
    inner = None if job.inner_GTR is None else job.inner_GTR.contiguous()
    optional = (job.shift_GST, job.column_sum_SN, job.bias_N, inner, job.up_NR, table)
    pointers = [job.codes if pointer is None else pointer for pointer in optional]
    grid = (num_m * num_n,)
    if job.packed:
        from segquant.kernels.triton_w4 import product_w4_kernel

        half = job.weight.shape[1]
        product_w4_kernel[grid](
            job.codes,
            job.weight.view(torch.int8),
            output,
            job.scale_GSPT,
            job.weight_scale_SN,
            *pointers,
            HALF=half,
            PLANES=job.planes[0],
            **shared,
        )
        return output
    from segquant.kernels.triton_parts import CODES, PRODUCERS
    from segquant.kernels.triton_product import product_kernel

    product_kernel[grid](
        job.codes,
        job.weight,
        output,
        job.scale_GSPT,
        job.weight_scale_SN,
        *pointers,
        job.codes if next_inverse_PN is None else next_inverse_PN,
        K=job.weight.shape[1],
        **segment_constants(job.segments, job.planes),
        WIDE=job.scale_GSPT.shape[2],
        PRODUCER=PRODUCERS[producer],
        OUT=-1 if next_code is None else CODES[next_code],
        **shared,
    )
    return output


def _tile(job: CodedProduct) -> Tile:
    """The rule's."""
    shifted = job.shift_GST is not None
    tiles = rules.candidates(stacked=max(job.planes) > 1, packed=job.packed, shifted=shifted)
    count = _processors(job.codes.device)
    return rules.choose_tile(tiles, rows=job.rows, runs=list(job.run_sizes), processors=count)


def _output(
    codes: Tensor, rows: int, features: int, dtype: torch.dtype, next_code: str | None
) -> Tensor:
    if next_code is None:
        return torch.empty(rows, features, dtype=dtype, device=codes.device)
    planes = 1 if next_code in ("symmetric", "zero_point") else 2
    stored = stored_rows(rows, planes)
    return torch.zeros(stored * features, dtype=torch.int8, device=codes.device)


def segment_constants(segments: Sequence[int], planes: Sequence[int]) -> dict[str, Any]:
    """Where each segment's features and codes begin, for the kernel's unrolled loop."""
    starts: list[tuple[int, int, int]] = []
    before, totals = 0, [0, 0]
    for size, count in zip(segments, planes, strict=True):
        starts.append((before, totals[0], totals[1]))
        before += size
        totals[count - 1] += size
    return {
        "SEGMENTS": tuple(segments),
        "PLANES": tuple(planes),
        "STARTS": tuple(starts),
        "TOTALS": tuple(totals),
    }


def rank_tile(rank: int) -> int:
    """The rank as the matrix instruction wants it: a power of two, of 16 at least."""
    return max(SMALLEST_RANK_TILE, 1 << (rank - 1).bit_length()) if rank else 0


@cache
def tile_table(runs: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """First feature, last + 1 and group of every column tile; none straddles two runs."""
    rows = []
    for group, first, last in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        rows += [(start, min(start + width, last), group) for start in range(first, last, width)]
    return torch.tensor(rows, dtype=torch.int32, device=device)


def encode(
    x_TI: Tensor,
    inverse_GPI: Tensor,
    zero_GI: Tensor | None,
    *,
    segments: Sequence[int],
    codes: str,
    num_bits: int,
    producer: str,
) -> Tensor:
    """`operators.encode_static` on a GPU: one launch per group and segment."""
    from segquant.kernels.codes import ActivationCode
    from segquant.kernels.triton_encode import encode_kernel
    from segquant.kernels.triton_parts import CODES, PRODUCERS

    x_TI = x_TI.contiguous()
    rows, features = x_TI.shape
    names = codes.split(",")
    blocks = [
        stored_rows(rows, ActivationCode(name).planes) * size
        for name, size in zip(names, segments, strict=True)
    ]
    groups, width, _ = inverse_GPI.shape
    encoded = torch.empty(groups * sum(blocks), dtype=torch.int8, device=x_TI.device)
    if rows == 0:
        return encoded
    at = 0
    for group in range(groups):
        start = 0
        for name, size, block in zip(names, segments, blocks, strict=True):
            grid = (-(-rows // rules.ENCODE_ROWS), -(-size // rules.ENCODE_COLUMNS))
            inverse = inverse_GPI.view(-1)[group * width * features + start :]
            zero = inverse if zero_GI is None else zero_GI.view(-1)[group * features + start :]
            encode_kernel[grid](
                x_TI.view(-1)[start:],
                encoded[at : at + block],
                inverse,
                zero,
                rows,
                FEATURES=features,
                SIZE=size,
                CODE=CODES[name],
                BITS=num_bits,
                PRODUCER=PRODUCERS[producer],
                BM=rules.ENCODE_ROWS,
                BK=rules.ENCODE_COLUMNS,
                num_warps=rules.ENCODE_WARPS,
                enable_fp_fusion=False,
            )
            at += block
            start += size
    return encoded


def small(
    x_TI: Tensor,
    weight_NI: Tensor,
    inverse_PI: Tensor,
    scale_P: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    *,
    producer: str,
    num_bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """`operators.small_product` on a GPU."""
    from segquant.kernels.triton_encode import small_kernel
    from segquant.kernels.triton_parts import PRODUCERS

    rows, features = x_TI.shape
    output = torch.empty(rows, weight_NI.shape[0], dtype=dtype, device=x_TI.device)
    if rows == 0:
        return output
    small_kernel[(-(-weight_NI.shape[0] // rules.SMALL_COLUMNS),)](
        x_TI.contiguous(),
        weight_NI,
        output,
        inverse_PI.contiguous(),
        scale_P.contiguous(),
        weight_scale_N,
        weight_scale_N if bias_N is None else bias_N,
        rows,
        N=weight_NI.shape[0],
        K=features,
        DUAL=inverse_PI.shape[0] > 1,
        BITS=num_bits,
        HAS_BIAS=bias_N is not None,
        PRODUCER=PRODUCERS[producer],
        BN=rules.SMALL_COLUMNS,
        BK=rules.small_depth(dual=inverse_PI.shape[0] > 1),
        num_warps=rules.SMALL_WARPS,
        num_stages=rules.SMALL_STAGES,
        enable_fp_fusion=False,
    )
    return output


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1  # Triton's interpreter
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
