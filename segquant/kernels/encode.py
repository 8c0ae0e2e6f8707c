"""From an input to its codes, in plain torch: what Inductor fuses and the kernels agree with.

Legend: T rows, I input features, G distinct smoothing vectors, S segments of the input, P planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from segquant.kernels.codes import (
    BYTE,
    ActivationCode,
    CodeSteps,
    code_steps,
    encode_planes,
)
from segquant.kernels.layout import split_planes, stack_planes, stored_rows


class Steps(Enum):
    """Where the steps come from."""

    static = "static"  # the calibration
    token = "token"  # each row
    tensor = "tensor"  # the whole input


class Producer(Enum):
    """An elementwise function in front of the codes, so that its output is never stored."""

    none = "none"
    silu = "silu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"

    def apply(self, x: Tensor) -> Tensor:
        if self is Producer.none:
            return x
        if self is Producer.silu:
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self is Producer.gelu_tanh else "none")


@dataclass(frozen=True, kw_only=True)
class CodePlan:
    """The structure of a layer's input codes: all but tensors."""

    segments: tuple[int, ...]  # sizes along the input features
    codes: tuple[ActivationCode, ...]  # of each segment
    num_bits: int = BYTE
    steps: Steps = Steps.static
    groups: int = 1

    def __post_init__(self) -> None:
        assert len(self.segments) == len(self.codes)
        assert len({code.integer for code in self.codes}) == 1, "integers and floats do not mix"

    @property
    def in_features(self) -> int:
        return sum(self.segments)

    @property
    def planes(self) -> tuple[int, ...]:
        return tuple(code.planes for code in self.codes)

    @property
    def integer(self) -> bool:
        return self.codes[0].integer

    @property
    def products(self) -> float:
        """Products that the layer costs, in units of one."""
        pairs = zip(self.segments, self.planes, strict=True)
        return sum(size * planes for size, planes in pairs) / self.in_features

    def stored_size(self, rows: int) -> int:
        """Bytes of all codes of `rows` rows."""
        pairs = zip(self.segments, self.planes, strict=True)
        return self.groups * sum(stored_rows(rows, p) * size for size, p in pairs)

    def name(self) -> str:
        """For records, such as `int8 dual static` or `int8 symmetric+dual token`."""
        kinds = "+".join(dict.fromkeys(code.name for code in self.codes))
        head = f"int{self.num_bits} {kinds}" if self.integer else "fp8_e4m3"
        return f"{head} {self.steps.name}"


@dataclass(frozen=True, kw_only=True)
class EncoderTensors:
    """What the calibration left behind for a plan; float32.

    Static steps: `inverse_GPI` holds, per plane, the reciprocal of smoothing times step of each
    feature, `zero_GI` the zero points (None: none), `scale_GSP` the steps. Other steps: only
    `factor_GI`, the smoothing.
    """

    inverse_GPI: Tensor | None = None
    zero_GI: Tensor | None = None
    scale_GSP: Tensor | None = None
    factor_GI: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """An input's codes.

    Attributes:
        codes: int8, flat: for each group and segment one block [stored rows, segment's features].
        scale_GSPT: steps; T is 1 where every row has the same. A missing second plane has 0.
        shift_GST: what zero points add to each element, where the bias does not hold it.
    """

    codes: Tensor
    scale_GSPT: Tensor
    shift_GST: Tensor | None
    rows: int


def static_tensors(
    steps: list[list[CodeSteps]], *, plan: CodePlan, smoothing_GI: Tensor | None
) -> EncoderTensors:
    """The tensors of given static steps, by group and segment (scalars per plane)."""
    device = steps[0][0].step.device
    width = max(plan.planes)
    scale_GSP = torch.zeros(plan.groups, len(plan.segments), width, device=device)
    inverse_GPI = torch.zeros(plan.groups, width, plan.in_features, device=device)
    zero_GI = torch.zeros(plan.groups, plan.in_features, device=device)
    for group, row in enumerate(steps):
        start = 0
        for at, (size, own_steps) in enumerate(zip(plan.segments, row, strict=True)):
            stop = start + size
            smooth_I = None if smoothing_GI is None else smoothing_GI[group, start:stop]
            for plane in range(own_steps.step.shape[-1]):
                scale_GSP[group, at, plane] = own_steps.step[plane]
                inverse_GPI[group, plane, start:stop] = _reciprocal(own_steps.step[plane], smooth_I)
            zero_GI[group, start:stop] = own_steps.zero[0]
            start = stop
    shifted = ActivationCode.zero_point in plan.codes
    return EncoderTensors(
        inverse_GPI=inverse_GPI, zero_GI=zero_GI if shifted else None, scale_GSP=scale_GSP
    )


def _reciprocal(step: Tensor, smooth_I: Tensor | None) -> Tensor:
    wide = step.double() if smooth_I is None else step.double() * smooth_I.double()
    return wide.reciprocal().float()


def static_plan(
    inverse_GPI: Tensor,
    zero_GI: Tensor | None,
    *,
    segments: Sequence[int],
    codes: str,
    num_bits: int,
) -> tuple[CodePlan, EncoderTensors]:
    """A plan and its tensors from what an operator is given; the steps' own values are 0."""
    plan = CodePlan(
        segments=tuple(segments),
        codes=tuple(ActivationCode(code) for code in codes.split(",")),
        num_bits=num_bits,
        groups=inverse_GPI.shape[0],
    )
    unused = inverse_GPI.new_zeros(plan.groups, len(plan.segments), max(plan.planes))
    tensors = EncoderTensors(inverse_GPI=inverse_GPI, zero_GI=zero_GI, scale_GSP=unused)
    return plan, tensors


def encode(
    x_TI: Tensor,
    *,
    plan: CodePlan,
    tensors: EncoderTensors,
    producer: Producer = Producer.none,
) -> Encoded:
    """Codes of an input of any floating type; `x_TI` is left as it is."""
    x = producer.apply(x_TI.float())
    if plan.steps is not Steps.static:
        return _encode_dynamic(x, plan=plan, factor_GI=tensors.factor_GI)
    inverse_GPI, scale_GSP = tensors.inverse_GPI, tensors.scale_GSP
    assert inverse_GPI is not None
    assert scale_GSP is not None
    zero_GI = tensors.zero_GI
    blocks = []
    for group in range(plan.groups):
        for start, stop, code in _segments(plan):
            inverse_IP = inverse_GPI[group, :, start:stop].T
            zero = inverse_IP if zero_GI is None else zero_GI[group, start:stop, None]
            planes = encode_planes(
                x[:, start:stop], inverse_IP, zero, code=code, num_bits=plan.num_bits
            )
            blocks.append(_stored(planes))
    codes = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return Encoded(codes=codes, scale_GSPT=scale_GSP[..., None], shift_GST=None, rows=x_TI.shape[0])


def _encode_dynamic(x: Tensor, *, plan: CodePlan, factor_GI: Tensor | None) -> Encoded:
    width, blocks = max(plan.planes), []
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    for group in range(plan.groups):
        smooth = x if factor_GI is None else x / factor_GI[group]
        for start, stop, code in _segments(plan):
            part = smooth[:, start:stop]
            steps = code_steps(*_reach(part, plan.steps), code=code, num_bits=plan.num_bits)
            planes = encode_planes(
                part,
                steps.step[:, None],
                steps.zero[:, None],
                code=code,
                num_bits=plan.num_bits,
                divide=True,
            )
            blocks.append(_stored(planes))
            scales.append(F.pad(steps.step, (0, width - steps.step.shape[-1])).T)
            shifts.append(steps.shift)
    count = (plan.groups, len(plan.segments))
    shifted = any(code in SHIFTED for code in plan.codes)
    return Encoded(
        codes=blocks[0] if len(blocks) == 1 else torch.cat(blocks),
        scale_GSPT=_grouped(scales, count),
        shift_GST=_grouped(shifts, count) if shifted else None,
        rows=x.shape[0],
    )


def _grouped(parts: list[Tensor], count: tuple[int, int]) -> Tensor:
    """By group and segment, from parts in that order."""
    stacked = torch.stack(parts)
    return stacked.view(*count, *stacked.shape[1:])


SHIFTED = (ActivationCode.zero_point, ActivationCode.dual_wide)


def _reach(part: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
    low, high = part.amin(-1), part.amax(-1)
    if steps is Steps.tensor and low.numel():
        low, high = low.amin().expand_as(low), high.amax().expand_as(high)
    return low, high


def _segments(plan: CodePlan) -> list[tuple[int, int, ActivationCode]]:
    segments, start = [], 0
    for size, code in zip(plan.segments, plan.codes, strict=True):
        segments.append((start, start + size, code))
        start += size
    return segments


def _stored(planes: list[Tensor]) -> Tensor:
    return stack_planes(planes).reshape(-1).view(torch.int8)


def blocks_of(encoded: Tensor, *, plan: CodePlan, rows: int) -> list[list[list[Tensor]]]:
    """The planes [T, features] by group and segment, as views where the layout allows."""
    blocks: list[list[list[Tensor]]] = []
    start = 0
    for _ in range(plan.groups):
        row = []
        for size, planes in zip(plan.segments, plan.planes, strict=True):
            stop = start + stored_rows(rows, planes) * size
            stacked = encoded[start:stop].view(-1, size)
            row.append(split_planes(stacked, rows=rows, planes=planes))
            start = stop
        blocks.append(row)
    return blocks
