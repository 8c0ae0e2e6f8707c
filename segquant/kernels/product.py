"""The product of codes and what follows it, in plain torch: the reference of every kernel.

Integers are exact. The rest is float32 in a fixed order, so that two ways to the same integers
give the same bits:

    part    = plane 0 * step 0 [+ plane 1 * step 1] [+ shift * column sum]
    total   = sum over segments of part * weight scale
    output  = total [+ bias] [+ inner @ up^T], in the output's type

Legend: T rows, I input features, N output features, G distinct smoothing vectors, S segments of
the input, P planes, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segquant.kernels.integers import exact_product
from segquant.kernels.layout import split_planes, stored_rows

Product = Callable[[Tensor, Tensor], Tensor]


def coded_product(
    codes: Tensor,
    weight_NI: Tensor,
    *,
    scale_GSPT: Tensor,
    weight_scale_SN: Tensor,
    shift_GST: Tensor | None,
    column_sum_SN: Tensor | None,
    bias_N: Tensor | None,
    inner_GTR: Tensor | None,
    up_NR: Tensor | None,
    rows: int,
    segments: Sequence[int],
    planes: Sequence[int],
    runs: Sequence[int],
    dtype: torch.dtype,
    product: Product = exact_product,
) -> Tensor:
    """The layer's output [T, N].

    Args:
        codes: flat, as `Encoded.codes` has them.
        runs: (group, first output feature, last + 1) of each run of output features, flat.
        product: how two int8 matrices are multiplied, [T, K] x [N, K] -> int32.
    """
    output_TN = torch.empty(rows, weight_NI.shape[0], dtype=dtype, device=codes.device)
    for group, first, last in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        total = _total(
            _blocks(codes, group=group, rows=rows, segments=segments, planes=planes),
            weight_NI[first:last],
            scale_SPT=scale_GSPT[group],
            weight_scale_SN=weight_scale_SN[:, first:last],
            shift_ST=None if shift_GST is None else shift_GST[group],
            column_sum_SN=None if column_sum_SN is None else column_sum_SN[:, first:last],
            rows=rows,
            planes=planes,
            product=product,
        )
        if bias_N is not None:
            total = total + bias_N[first:last]
        if inner_GTR is not None and up_NR is not None:
            total = total + inner_GTR[group].float() @ up_NR[first:last].float().T
        output_TN[:, first:last] = total.to(dtype)
    return output_TN


def _total(
    blocks: Sequence[Tensor],
    weight_NI: Tensor,
    *,
    scale_SPT: Tensor,
    weight_scale_SN: Tensor,
    shift_ST: Tensor | None,
    column_sum_SN: Tensor | None,
    rows: int,
    planes: Sequence[int],
    product: Product,
) -> Tensor:
    total: Tensor | None = None
    start = 0
    for at, (stacked, count) in enumerate(zip(blocks, planes, strict=True)):
        stop = start + stacked.shape[-1]
        # One product over the stacked planes: the weights are read once.
        sums = split_planes(product(stacked, weight_NI[:, start:stop]), rows=rows, planes=count)
        part = sums[0].float() * scale_SPT[at, 0][:, None]
        if count > 1:
            part = part + sums[1].float() * scale_SPT[at, 1][:, None]
        if shift_ST is not None and column_sum_SN is not None:
            part = part + shift_ST[at][:, None] * column_sum_SN[at]
        part = part * weight_scale_SN[at]
        total = part if total is None else total + part
        start = stop
    assert total is not None
    return total


def _blocks(
    codes: Tensor, *, group: int, rows: int, segments: Sequence[int], planes: Sequence[int]
) -> list[Tensor]:
    """The stacked planes of one group, a matrix per segment."""
    sizes = [stored_rows(rows, p) * size for size, p in zip(segments, planes, strict=True)]
    start = group * sum(sizes)
    found = []
    for size, width in zip(sizes, segments, strict=True):
        found.append(codes[start : start + size].view(-1, width))
        start += size
    return found


def fp8_product(
    codes_TI: Tensor,
    weight_NI: Tensor,
    *,
    scale: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The layer's output from e4m3 codes (as int8), summed in float32: not exact, as nothing is.

    Args:
        scale: one step, or one a row [T].
    """
    x_TI = codes_TI.view(torch.float8_e4m3fn).float()
    sums = x_TI @ weight_NI.view(torch.float8_e4m3fn).float().T
    total = sums * scale.reshape(-1, 1) * weight_scale_N
    return (total if bias_N is None else total + bias_N).to(dtype)
