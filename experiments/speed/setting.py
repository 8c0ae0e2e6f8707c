"""One shape's tensors, and what a candidate for it is held to: the layer in float64.

Legend: N output features, S segments, G groups, P planes, T rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.speed.full_sizes import Shape
from segquant.kernels import ActivationCode, PackedLinear, pack_dense
from segquant.kernels.encode import Encoded, blocks_of, encode
from segquant.kernels.packed import weight_codes

SMALL_ROWS = 16
# bfloat16 output is off by half of its last bit; of the largest value, 2^-9.
CLOSE = 2.0**-8
FLOAT_CLOSE = 2.0**-6  # sums in another order and type


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way through a layer."""

    name: str
    what: str  # for the table's legend
    call: Callable[[], Tensor]
    expected: Callable[[], Tensor]  # float64
    tolerance: float
    execution: str = "kernel"  # a simulated one is checked and not timed
    products: int = 1


@dataclass(kw_only=True)
class Setting:
    """The tensors of one shape."""

    shape: Shape
    device: torch.device
    seed: int = 0
    compiled: bool = True  # whether to time what torch.compile makes as well

    @property
    def triton(self) -> bool:
        """Whether Triton's kernels run here: on a GPU, or in Triton's interpreter."""
        return self.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"

    @cached_property
    def x(self) -> Tensor:
        g = torch.Generator(self.device).manual_seed(self.seed)
        size = (self.shape.rows, self.shape.in_features)
        noise = torch.randn(size, generator=g, device=self.device, dtype=torch.float32)
        return (F.gelu(2 * noise - 1) if self.shape.after else noise).to(torch.bfloat16)

    @cached_property
    def weight(self) -> Tensor:
        g = torch.Generator(self.device).manual_seed(self.seed + 1)
        size = (self.shape.out_features, self.shape.in_features)
        noise = torch.randn(size, generator=g, device=self.device, dtype=torch.float32)
        return (noise / self.shape.in_features**0.5).to(torch.bfloat16)

    @cached_property
    def bias(self) -> Tensor:
        return torch.linspace(-1, 1, self.shape.out_features, device=self.device).bfloat16()

    def packed(self, code: ActivationCode, *, weight_bits: int = 8) -> PackedLinear:
        return pack_dense(
            self.weight,
            code=code,
            low=self.x.float().amin(),
            high=self.x.float().amax(),
            bias=self.bias,
            weight_bits=weight_bits,
        )

    def exact_codes(self, packed: PackedLinear) -> Tensor:
        """The layer in float64, from its codes' values."""
        encoded = encode(self.x, plan=packed.plan, tensors=packed.tensors)
        return exact_from_codes(encoded, packed, rows=self.shape.rows)

    def exact_float(self) -> Tensor:
        return self.x.double() @ self.weight.double().T + self.bias.double()


def exact_from_codes(encoded: Encoded, packed: PackedLinear, *, rows: int) -> Tensor:
    """An uncut, static layer's output in float64."""
    (planes,) = blocks_of(encoded.codes, plan=packed.plan, rows=rows)[0]
    steps = encoded.scale_GSPT[0, 0, :, 0].double()
    if packed.plan.integer:
        w = weight_codes(packed).double()
        parts = [plane.double() for plane in planes]
    else:
        w = packed.weight.view(torch.float8_e4m3fn).double()
        parts = [plane.view(torch.float8_e4m3fn).double() for plane in planes]
    total = sum((part * step for part, step in zip(parts, steps, strict=False)), parts[0] * 0)
    output = (total @ w.T) * packed.weight_scale_SN[0].double()
    return output if packed.bias_N is None else output + packed.bias_N.double()
