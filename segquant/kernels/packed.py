"""A quantized layer ready for a product of integers: codes, steps, and what the bias takes up.

Legend: T rows, I input features, N output features, G distinct smoothing vectors, S segments of
the input, P planes, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from segquant.core.blocks import expand_rows
from segquant.core.linear import QuantLinear
from segquant.core.schemes import Granularity, NumberFormat, TensorScheme
from segquant.kernels.codes import ActivationCode, CodeSteps, code_steps, planes_of
from segquant.kernels.encode import (
    SHIFTED,
    CodePlan,
    EncoderTensors,
    Steps,
    static_tensors,
)
from segquant.kernels.layout import pack_halves, unpack_halves

# Each segment is unrolled in the kernel; more of them are finer groups, another kind of product.
MOST_SEGMENTS = 8
PACKED_BITS = 4


@dataclass(frozen=True, kw_only=True)
class PackedLinear:
    """All that `quantized_linear` needs of a layer.

    Attributes:
        runs: (group, first output feature, last + 1) of each run of output features.
        weight: int8 codes [N, I]; halves of bytes [N, I / 2] (uint8) in 4 bits; e4m3 as int8.
        weight_scale_SN: a step for each output feature and segment of the input.
        bias_N: float32, with the constant part of zero points; None where there is neither.
        column_sum_SN: sums of the weight's codes, where zero points vary with the rows.
    """

    plan: CodePlan
    runs: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    weight: Tensor
    weight_scale_SN: Tensor
    tensors: EncoderTensors
    bias_N: Tensor | None = None
    column_sum_SN: Tensor | None = None
    smooth_GI: Tensor | None = None  # reciprocal smoothing, for the low-rank branch
    down_RI: Tensor | None = None
    up_NR: Tensor | None = None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte."""
        return self.weight.dtype is torch.uint8

    @property
    def flat_runs(self) -> list[int]:
        return [number for run in self.runs for number in run]

    def tensor_items(self) -> dict[str, Tensor | None]:
        """Every tensor by name, for a module's buffers."""
        own = {buffer.name: getattr(self, buffer.name) for buffer in fields(self)}
        encoder = {
            buffer.name: getattr(self.tensors, buffer.name) for buffer in fields(self.tensors)
        }
        return {k: v for k, v in (own | encoder).items() if v is None or isinstance(v, Tensor)}

    def with_tensors(self, items: dict[str, Tensor | None]) -> PackedLinear:
        """The same structure on other tensors (moved ones)."""
        names = {buffer.name for buffer in fields(self.tensors)}
        encoder: dict[str, Any] = {k: v for k, v in items.items() if k in names}
        own: dict[str, Any] = {k: v for k, v in items.items() if k not in names}
        return replace(self, **own, tensors=EncoderTensors(**encoder))


def why_not(quant: QuantLinear) -> str | None:
    """Why a layer has no product of 8-bit codes, or None."""
    spec = quant.spec
    weight, activation = spec.weight, spec.activation
    if not activation.quantized:
        return "activations in 16 bit"
    if quant.transform is not None or spec.input_power:
        return "an input that is shifted, scaled, reordered or rotated first"
    if spec.steps:
        return "activation scales per sampling step"
    formats = (weight.number_format, activation.number_format)
    if formats == (NumberFormat.fp8_e4m3,) * 2:
        return _why_not_fp8(quant)
    for what, scheme in (("weights", weight), ("activations", activation)):
        if scheme.number_format is not NumberFormat.integer:
            return f"{what} in {scheme.number_format.name}"
        if scheme.granularity is Granularity.per_group:
            return f"{what} with a scale per group of {scheme.group_size} features"
    if not weight.symmetric:
        return "asymmetric weights"
    if spec.weight_blocks != spec.activation_blocks:
        return "weights and activations are cut differently"
    if len(spec.activation_blocks) > MOST_SEGMENTS:
        return f"{len(spec.activation_blocks)} input segments, more than {MOST_SEGMENTS}"
    return None


def _why_not_fp8(quant: QuantLinear) -> str | None:
    if any(quant.spec.dual):
        return "DualScale in fp8"
    if len(quant.spec.activation_blocks) > 1:
        return "input segments in fp8"
    return "a low-rank branch in fp8" if quant.spec.rank else None


def pack_linear(quant: QuantLinear) -> PackedLinear:
    """A QuantLinear's own codes and steps, as the kernels want them.

    Raises:
        ValueError: there is no product for it; `why_not` says why.
    """
    reason = why_not(quant)
    if reason is not None:
        raise ValueError(f"no kernel for {reason}; run this layer with execution=simulated")
    spec, plan = quant.spec, plan_of(quant)
    rows_ON = expand_rows(quant.weight_scale, spec.weight_grid.scale_rows)
    weight_scale_SN, up_NR = rows_ON.T.expand(-1, spec.out_features), quant.low_rank_up
    if quant.row_factors is not None:  # another layer's smoothing, folded into this one's output
        weight_scale_SN = weight_scale_SN * quant.row_factors
        up_NR = None if up_NR is None else up_NR * quant.row_factors[:, None]
    return assemble(
        quant.integer_codes(),
        weight_scale_SN,
        plan=plan,
        runs=spec.runs(),
        dtype=quant.dtype,
        steps=_static_steps(quant) if plan.steps is Steps.static else None,
        smoothing_GI=quant.smoothing,
        bias=quant.bias,
        down_RI=quant.low_rank_down,
        up_NR=up_NR,
        packed=spec.weight.num_bits <= PACKED_BITS,
    )


def plan_of(quant: QuantLinear) -> CodePlan:
    """The codes that a layer's own scheme amounts to."""
    spec = quant.spec
    return CodePlan(
        segments=spec.activation_blocks,
        codes=tuple(_code(spec.activation, dual=dual) for dual in spec.dual),
        num_bits=spec.activation.num_bits,
        steps=_steps_of(spec.activation),
        groups=max(1, spec.smoothing_count),
    )


def _code(scheme: TensorScheme, *, dual: bool) -> ActivationCode:
    if scheme.number_format is NumberFormat.fp8_e4m3:
        return ActivationCode.fp8
    if not scheme.symmetric:
        return ActivationCode.zero_point
    return ActivationCode.dual if dual else ActivationCode.symmetric


def _steps_of(scheme: TensorScheme) -> Steps:
    if not scheme.dynamic:
        return Steps.static
    return Steps.token if scheme.granularity is Granularity.per_token else Steps.tensor


def _static_steps(quant: QuantLinear) -> list[list[CodeSteps]]:
    scale_GN, negative_GN = quant.activation_scale, quant.activation_negative_scale
    zero_GN = quant.activation_zero_point
    assert scale_GN is not None
    by_group = []
    for group in range(scale_GN.shape[0]):
        row = []
        for at, dual in enumerate(quant.spec.dual):
            steps = [scale_GN[group, at]]
            if dual:
                assert negative_GN is not None
                steps.append(negative_GN[group, at])
            row.append(planes_of(*steps, zero=None if zero_GN is None else zero_GN[group, at]))
        by_group.append(row)
    return by_group


def assemble(
    codes_NI: Tensor,
    weight_scale_SN: Tensor,
    *,
    plan: CodePlan,
    runs: tuple[tuple[int, int, int], ...],
    dtype: torch.dtype,
    steps: list[list[CodeSteps]] | None,
    smoothing_GI: Tensor | None = None,
    bias: Tensor | None = None,
    down_RI: Tensor | None = None,
    up_NR: Tensor | None = None,
    packed: bool = False,
) -> PackedLinear:
    """A packed layer from its codes and steps.

    Args:
        steps: by group and segment; None for dynamic ones.
        packed: the codes have 4 bits and may share bytes (where the kernel for it applies).
    """
    factor_GI = None if smoothing_GI is None else smoothing_GI.double().reciprocal().float()
    if steps is None:
        tensors = EncoderTensors(factor_GI=smoothing_GI)
    else:
        tensors = static_tensors(steps, plan=plan, smoothing_GI=smoothing_GI)
    shifted = any(code in SHIFTED for code in plan.codes)
    sums_SN = _column_sums(codes_NI, plan.segments) if shifted else None
    total = None if bias is None else bias.float()
    if steps is not None and sums_SN is not None:
        constant = _constant(steps, runs, sums_SN, weight_scale_SN)
        total, sums_SN = constant if total is None else total.double() + constant, None
    halves = packed and len(plan.segments) == 1 and plan.in_features % 2 == 0
    return PackedLinear(
        plan=plan,
        runs=runs,
        dtype=dtype,
        weight=(pack_halves(codes_NI) if halves else codes_NI).contiguous(),
        weight_scale_SN=weight_scale_SN.float().contiguous(),
        tensors=tensors,
        bias_N=None if total is None else total.float(),
        column_sum_SN=None if sums_SN is None else sums_SN.float(),
        smooth_GI=factor_GI if up_NR is not None else None,
        down_RI=None if down_RI is None else down_RI.to(dtype),
        up_NR=None if up_NR is None else up_NR.to(dtype),
    )


def _column_sums(codes_NI: Tensor, segments: tuple[int, ...]) -> Tensor:
    parts = torch.split_with_sizes(codes_NI, list(segments), -1)
    return torch.stack([part.sum(-1, dtype=torch.int64) for part in parts])


def _constant(
    steps: list[list[CodeSteps]],
    runs: tuple[tuple[int, int, int], ...],
    sums_SN: Tensor,
    weight_scale_SN: Tensor,
) -> Tensor:
    """What static zero points add to every row's output, float64 [N]."""
    constant_N = torch.zeros(sums_SN.shape[1], dtype=torch.float64, device=sums_SN.device)
    for group, first, last in runs:
        for at, own_steps in enumerate(steps[group]):
            wide = CodeSteps(
                step=own_steps.step.double(),
                inverse=own_steps.inverse,
                zero=own_steps.zero.double(),
            )
            scale_N = weight_scale_SN[at, first:last].double()
            constant_N[first:last] += wide.shift * scale_N * sums_SN[at, first:last]
    return constant_N


def weight_codes(packed: PackedLinear) -> Tensor:
    """The weight's codes as int8 [N, I]."""
    return unpack_halves(packed.weight) if packed.packed else packed.weight


def pack_dense(
    w_NI: Tensor,
    *,
    code: ActivationCode,
    low: Tensor | float,
    high: Tensor | float,
    steps: Steps = Steps.static,
    bias: Tensor | None = None,
    weight_bits: int = 8,
    up_NR: Tensor | None = None,
    down_RI: Tensor | None = None,
) -> PackedLinear:
    """An uncut layer from its weight (per channel, to nearest) and its input's range."""
    w = w_NI.detach().float()
    most = 2 ** (weight_bits - 1) - 1
    fp8 = code is ActivationCode.fp8
    reach_N = w.abs().amax(-1)
    limit = torch.finfo(torch.float8_e4m3fn).max if fp8 else most
    scale_N = torch.where(reach_N > 0, reach_N / limit, torch.ones_like(reach_N))
    units = w / scale_N[:, None]
    if fp8:
        codes_NI = units.to(torch.float8_e4m3fn).view(torch.int8)
    else:
        codes_NI = units.round().clamp(-most - 1, most).to(torch.int8)
    plan = CodePlan(segments=(w.shape[1],), codes=(code,), steps=steps)
    ends = [torch.as_tensor(value, device=w.device).float() for value in (low, high)]
    static = [[code_steps(*ends, code=code)]] if steps is Steps.static else None
    return assemble(
        codes_NI,
        scale_N[None],
        plan=plan,
        runs=((0, 0, w.shape[0]),),
        dtype=w_NI.dtype,
        steps=static,
        bias=bias,
        packed=weight_bits <= PACKED_BITS,
        up_NR=up_NR,
        down_RI=down_RI,
    )


def low_rank_inner(x_TI: Tensor, packed: PackedLinear) -> Tensor | None:
    """The low-rank branch's [G, T, R], read from the input before it is quantized."""
    down_RI = packed.down_RI
    if down_RI is None:
        return None
    if packed.smooth_GI is None:
        inner_TR = F.linear(x_TI.to(packed.dtype), down_RI)
        return inner_TR[None].expand(packed.plan.groups, -1, -1)
    wide = x_TI.float()
    smooth = [(wide * factor_I).to(packed.dtype) for factor_I in packed.smooth_GI]
    return torch.stack([F.linear(smoothed_TI, down_RI) for smoothed_TI in smooth])
