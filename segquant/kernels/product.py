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
from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.kernels.encode import Encoded
from segquant.kernels.integers import exact_product
from segquant.kernels.layout import split_planes, stored_rows
from segquant.kernels.packed import PackedLinear

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class CodedProduct:
    """What a product of codes reads: an input's codes and a layer's.

    Attributes:
        codes: flat, as `Encoded.codes` has them.
        weight: int8 [N, I], or halves of bytes as `PackedLinear.weight` has them.
        inner_GTR: the low-rank branch's input, where the layer has one.
        runs: (group, first output feature, last + 1) of each run of output features, flat.
    """

    codes: Tensor
    weight: Tensor
    scale_GSPT: Tensor
    weight_scale_SN: Tensor
    shift_GST: Tensor | None
    column_sum_SN: Tensor | None
    bias_N: Tensor | None
    inner_GTR: Tensor | None
    up_NR: Tensor | None
    rows: int
    segments: Sequence[int]
    planes: Sequence[int]
    runs: Sequence[int]

    @classmethod
    def of(
        cls, encoded: Encoded, packed: PackedLinear, *, inner_GTR: Tensor | None = None
    ) -> CodedProduct:
        """Of an encoded input and the layer that reads it."""
        return cls(
            codes=encoded.codes,
            weight=packed.weight,
            scale_GSPT=encoded.scale_GSPT,
            weight_scale_SN=packed.weight_scale_SN,
            shift_GST=encoded.shift_GST,
            column_sum_SN=packed.column_sum_SN,
            bias_N=packed.bias_N,
            inner_GTR=inner_GTR,
            up_NR=packed.up_NR,
            rows=encoded.rows,
            segments=packed.plan.segments,
            planes=packed.plan.planes,
            runs=packed.flat_runs,
        )

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def packed(self) -> bool:
        """Whether two codes of the weight share a byte."""
        return self.weight.dtype is torch.uint8

    @property
    def run_sizes(self) -> tuple[int, ...]:
        """Output features of each run."""
        pairs = zip(self.runs[1::3], self.runs[2::3], strict=True)
        return tuple(last - first for first, last in pairs)


def coded_product(
    job: CodedProduct, *, dtype: torch.dtype, product: Product = exact_product
) -> Tensor:
    """The layer's output [T, N].

    Args:
        job: its weight is int8, not packed.
        product: how two int8 matrices are multiplied, [T, K] x [N, K] -> int32.
    """
    output_TN = torch.empty(job.rows, job.out_features, dtype=dtype, device=job.codes.device)
    for group, first, last in zip(job.runs[::3], job.runs[1::3], job.runs[2::3], strict=True):
        total = _total(job, group=group, first=first, last=last, product=product)
        if job.bias_N is not None:
            total = total + job.bias_N[first:last]
        if job.inner_GTR is not None and job.up_NR is not None:
            total = total + job.inner_GTR[group].float() @ job.up_NR[first:last].float().T
        output_TN[:, first:last] = total.to(dtype)
    return output_TN


def _total(job: CodedProduct, *, group: int, first: int, last: int, product: Product) -> Tensor:
    """The products of one run of output features, segments added up [T, last - first]."""
    scale_SPT, weight_NI = job.scale_GSPT[group], job.weight[first:last]
    total: Tensor | None = None
    start = 0
    for at, (stacked, count) in enumerate(zip(_blocks(job, group), job.planes, strict=True)):
        stop = start + stacked.shape[-1]
        # One product over the stacked planes: the weights are read once.
        sums = split_planes(product(stacked, weight_NI[:, start:stop]), rows=job.rows, planes=count)
        part = sums[0].float() * scale_SPT[at, 0][:, None]
        if count > 1:
            part = part + sums[1].float() * scale_SPT[at, 1][:, None]
        if job.shift_GST is not None and job.column_sum_SN is not None:
            part = part + job.shift_GST[group, at][:, None] * job.column_sum_SN[at, first:last]
        part = part * job.weight_scale_SN[at, first:last]
        total = part if total is None else total + part
        start = stop
    assert total is not None
    return total


def _blocks(job: CodedProduct, group: int) -> list[Tensor]:
    """The stacked planes of one group, a matrix per segment."""
    pairs = zip(job.segments, job.planes, strict=True)
    sizes = [stored_rows(job.rows, planes) * width for width, planes in pairs]
    start = group * sum(sizes)
    blocks = []
    for size, width in zip(sizes, job.segments, strict=True):
        blocks.append(job.codes[start : start + size].view(-1, width))
        start += size
    return blocks


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
