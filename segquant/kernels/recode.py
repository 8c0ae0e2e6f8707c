"""A quantized layer's input in another code than its method chose: to judge one code by another.

Weights, smoothing and segments stay; only the steps of the input's codes are made anew, from the
calibration's extremes.

Legend: T sampled rows, I input features, N output features, G distinct smoothing vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from segquant.core.input_statistics import LayerStatistics
from segquant.core.linear import QuantLinear
from segquant.kernels.auto import INTEGER_CODES, TOLERANCE, Coding, choose_coding, code_errors
from segquant.kernels.codes import BYTE, ActivationCode, code_steps
from segquant.kernels.encode import CodePlan, Steps
from segquant.kernels.packed import PackedLinear, assemble, pack_linear, plan_of, why_not

AUTO = "auto"


def why_not_recoded(quant: QuantLinear) -> str | None:
    """Why a layer keeps the code that its method gave it, or None."""
    reason = why_not(quant)
    if reason is not None:
        return reason
    plan = plan_of(quant)
    if not plan.integer or plan.num_bits != BYTE or plan.steps is not Steps.static:
        return f"only static int8 is coded anew, not {plan.name()}"
    return None


def pack_recoded(
    quant: QuantLinear, *, seen: LayerStatistics, code: str, tolerance: float = TOLERANCE
) -> PackedLinear:
    """The layer with `code` where its method has DualScale; `auto` chooses for every segment.

    Raises:
        ValueError: `why_not_recoded` says why.
    """
    reason = why_not_recoded(quant)
    if reason is not None:
        raise ValueError(f"no other code: {reason}")
    before = plan_of(quant)
    if code == AUTO:
        codes = _chosen(quant, seen, before, tolerance=tolerance)
    else:
        dual, other = ActivationCode.dual, ActivationCode[code]
        codes = tuple(other if own is dual else own for own in before.codes)
    packed = pack_linear(quant)
    if codes == before.codes:
        return packed
    plan = replace(before, codes=codes)
    return assemble(
        quant.integer_codes(),
        packed.weight_scale_SN,
        plan=plan,
        runs=packed.runs,
        dtype=packed.dtype,
        steps=[
            [
                code_steps(low.min(), high.max(), code=own)
                for (low, high, _), own in zip(row, codes, strict=True)
            ]
            for row in _segments(quant, seen, plan)
        ],
        smoothing_GI=quant.smoothing,
        bias=quant.bias,
        down_RI=packed.down_RI,
        up_NR=packed.up_NR,
        packed=packed.packed,
    )


def _segments(
    quant: QuantLinear, seen: LayerStatistics, plan: CodePlan
) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """Per group and segment: the smoothed input's lowest, highest, and sampled values."""
    device = quant.weight_scale.device
    facts = [tensor.to(device) for tensor in (seen.low_I, seen.high_I, seen.sample_TI)]
    factors: Sequence[Tensor | float] = [1.0] if quant.smoothing is None else list(quant.smoothing)
    sizes = list(plan.segments)
    by_group = []
    for factor in factors:
        low, high, sample = (torch.split_with_sizes(tensor / factor, sizes, -1) for tensor in facts)
        by_group.append(list(zip(low, high, sample, strict=True)))
    return by_group


def _chosen(
    quant: QuantLinear, seen: LayerStatistics, plan: CodePlan, *, tolerance: float
) -> tuple[ActivationCode, ...]:
    """Per segment the cheapest code within the tolerance in every group, else the most exact."""
    codings = [Coding(code=code) for code in INTEGER_CODES]
    weights = torch.split_with_sizes(quant.dense_OI.float(), list(plan.segments), -1)
    groups = _segments(quant, seen, plan)
    chosen = []
    for at, weight_NI in enumerate(weights):
        worst = torch.zeros(len(codings))
        for row in groups:
            low, high, sample_TI = row[at]
            ends = {"low": low.min(), "high": high.max()}
            errors = code_errors(sample_TI, weight_NI, codings, **ends)
            worst = worst.maximum(torch.tensor([measured.error for measured in errors]))
        coding = choose_coding(codings, worst.tolist(), tolerance=tolerance)
        chosen.append(coding.code)
    return tuple(chosen)
