"""Inputs and layers that the tests of kernels share, and what they amount to in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from segquant.kernels.codes import ActivationCode, CodeSteps, code_steps, decode_planes
from segquant.kernels.encode import CodePlan, Steps, blocks_of, encode
from segquant.kernels.packed import PackedLinear, assemble

CODES = tuple(code for code in ActivationCode if code.integer)
SHAPES = ((37, 45, 64), (5, 16, 77), (1, 19, 129), (13, 33, 100))  # rows, out, in


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(kind: str, rows: int, features: int, *, seed: int = 0) -> Tensor:
    x = torch.randn(rows, features, generator=generator(seed))
    if kind == "gelu":
        return F.gelu(2 * x - 1)
    if kind == "positive":
        return x.abs() + 0.1
    if kind == "negative":
        return -x.abs() - 0.1
    if kind == "extreme":
        x *= torch.logspace(-30, 5, features)
        x[0, 0], x[-1, -1] = 1e30, -1e30
        return x
    if kind == "zero":
        return torch.zeros(rows, features)
    assert kind == "normal", kind
    return x


def layer(
    x: Tensor,
    out_features: int,
    *,
    codes: Sequence[ActivationCode],
    segments: Sequence[int] = (),
    steps: Steps = Steps.static,
    output: Sequence[int] = (),
    bias: bool = True,
    smooth: bool = False,
    rank: int = 0,
    weight_bits: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PackedLinear:
    """A packed layer with random codes; every output segment has a smoothing vector of its own."""
    g, features = generator(seed + 100), x.shape[1]
    most = 2 ** (weight_bits - 1)
    weight = torch.randint(-most, most, (out_features, features), generator=g, dtype=torch.int8)
    sizes = tuple(segments) or (features,)
    output = tuple(output) or (out_features,)
    plan = CodePlan(segments=sizes, codes=tuple(codes), steps=steps, groups=len(output))
    smoothing = None
    if smooth or len(output) > 1:
        smoothing = torch.rand(len(output), features, generator=g) + 0.5
    ends = torch.tensor([0, *output]).cumsum(0).tolist()
    static = None
    if steps is Steps.static:
        static = [static_steps(x, plan, smoothing, group) for group in range(plan.groups)]
    return assemble(
        weight,
        torch.rand(len(sizes), out_features, generator=g) / 500 + 1e-4,
        plan=plan,
        runs=tuple((i, ends[i], ends[i + 1]) for i in range(len(output))),
        dtype=dtype,
        steps=static,
        smoothing_GI=smoothing,
        bias=torch.randn(out_features, generator=g) if bias else None,
        down_RI=torch.randn(rank, features, generator=g) if rank else None,
        up_NR=torch.randn(out_features, rank, generator=g) if rank else None,
        packed=weight_bits <= 4,
    )


def static_steps(
    x: Tensor, plan: CodePlan, smoothing: Tensor | None, group: int
) -> list[CodeSteps]:
    smooth = x if smoothing is None else x / smoothing[group]
    parts = smooth.nan_to_num(0.0).split(plan.segments, -1)
    return [
        code_steps(part.min(), part.max(), code=code, num_bits=plan.num_bits)
        for part, code in zip(parts, plan.codes, strict=True)
    ]


def exact_output(x: Tensor, packed: PackedLinear) -> Tensor:
    """The layer in float64, from the codes that `encode` gives and integers in int64."""
    from segquant.kernels.packed import low_rank_inner, weight_codes

    plan = packed.plan
    encoded = encode(x, plan=plan, tensors=packed.tensors)
    w = weight_codes(packed).long()
    blocks = blocks_of(encoded.codes, plan=plan, rows=x.shape[0])
    inner = low_rank_inner(x, packed)
    output = torch.zeros(x.shape[0], packed.out_features, dtype=torch.float64)
    for group, first, last in packed.runs:
        start = 0
        for at, size in enumerate(plan.segments):
            part = torch.zeros(x.shape[0], last - first, dtype=torch.float64)
            for plane, codes in enumerate(blocks[group][at]):
                sums = codes.long() @ w[first:last, start : start + size].T
                part += sums * encoded.scale_GSPT[group, at, plane].double()[:, None]
            if encoded.shift_GST is not None and packed.column_sum_SN is not None:
                sums = packed.column_sum_SN[at, first:last].double()
                part += encoded.shift_GST[group, at].double()[:, None] * sums
            output[:, first:last] += part * packed.weight_scale_SN[at, first:last].double()
            start += size
        if packed.bias_N is not None:
            output[:, first:last] += packed.bias_N[first:last].double()
        if inner is not None and packed.up_NR is not None:
            output[:, first:last] += inner[group].double() @ packed.up_NR[first:last].double().T
    return output


def decoded(x: Tensor, packed: PackedLinear, steps: list[list[CodeSteps]]) -> list[Tensor]:
    """What the codes stand for, smoothed, by group [T, I]."""
    encoded = encode(x, plan=packed.plan, tensors=packed.tensors)
    blocks = blocks_of(encoded.codes, plan=packed.plan, rows=x.shape[0])
    return [
        torch.cat([decode_planes(p, s) for p, s in zip(row, steps[g], strict=True)], -1)
        for g, row in enumerate(blocks)
    ]
