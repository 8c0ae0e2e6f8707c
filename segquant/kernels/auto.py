"""Which activation code suits a layer: its measured error against the products it costs.

Legend: T sampled rows, I input features, N output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segquant.kernels.codes import ActivationCode, code_steps, decode_planes, encode_planes
from segquant.kernels.encode import Steps

# Eight-bit weights of one scale per channel are off by about this much: finer inputs gain little.
TOLERANCE = 0.01
INTEGER_CODES = tuple(code for code in ActivationCode if code.integer)


@dataclass(frozen=True, kw_only=True)
class Coding:
    """A code and where its steps come from."""

    code: ActivationCode
    steps: Steps = Steps.static

    @property
    def name(self) -> str:
        return f"{self.code.name} {self.steps.name}"


@dataclass(frozen=True, kw_only=True)
class CodeError:
    """What a coding of the input alone does to a layer's output."""

    coding: Coding
    products: int
    error: float  # ||(x' - x) W^T|| / ||x W^T||


def coded(x_TI: Tensor, coding: Coding, *, low: Tensor, high: Tensor) -> Tensor:
    """An input after a coding and back, float32; static steps reach `low` and `high`."""
    if coding.steps is Steps.static:
        steps = code_steps(low, high, code=coding.code)
        planes = encode_planes(x_TI, steps.inverse, steps.zero, code=coding.code)
        return decode_planes(planes, steps)
    ends = (x_TI.amin(-1, keepdim=True), x_TI.amax(-1, keepdim=True))
    if coding.steps is Steps.tensor:
        ends = (ends[0].amin(0, keepdim=True), ends[1].amax(0, keepdim=True))
    steps = code_steps(*ends, code=coding.code)
    planes = encode_planes(x_TI, steps.inverse, steps.zero, code=coding.code)
    return decode_planes(planes, steps)


def output_powers(
    x_TI: Tensor, w_NI: Tensor, codings: Sequence[Coding], *, low: Tensor, high: Tensor
) -> tuple[list[float], float]:
    """Sums of squares of what each coding adds to the output, and of the output itself."""
    x = x_TI.float()
    wrong = [coded(x, coding, low=low, high=high) - x for coding in codings]
    # One product for all: a study of small layers is bound by calls.
    outputs = torch.stack([*wrong, x]) @ w_NI.float().T
    powers: list[float] = outputs.double().square().sum((-1, -2)).tolist()
    return powers[:-1], powers[-1]


def code_errors(
    x_TI: Tensor, w_NI: Tensor, codings: Sequence[Coding], *, low: Tensor, high: Tensor
) -> list[CodeError]:
    """Every coding's error on sampled rows of a layer's input."""
    added, own = output_powers(x_TI, w_NI, codings, low=low, high=high)
    return [
        CodeError(
            coding=coding,
            products=coding.code.planes,
            error=(power / own) ** 0.5 if own > 0 else power**0.5,
        )
        for coding, power in zip(codings, added, strict=True)
    ]


def choose_coding(
    codings: Sequence[Coding], errors: Sequence[float], *, tolerance: float = TOLERANCE
) -> Coding:
    """The cheapest coding within the tolerance, of those the most exact; else the most exact."""
    ranked = [
        (error > tolerance, coding.code.planes if error <= tolerance else 0, error, number)
        for number, (coding, error) in enumerate(zip(codings, errors, strict=True))
    ]
    return codings[min(ranked)[-1]]
