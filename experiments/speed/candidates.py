"""What is timed at each shape: our ways, the libraries', and the naive ones, each with its check.

A candidate is checked against float64 on fresh random input before its time is taken. `exact_of`
says against what: the codes' own product, or (for 16 bit) the float product.

Legend: M rows, K input features, N output features.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.speed.full_sizes import Shape
from segquant.kernels import (
    ActivationCode,
    Device,
    PackedLinear,
    Producer,
    Way,
    choose,
    pack_dense,
    quantized_linear,
)
from segquant.kernels.door import encode_input
from segquant.kernels.encode import Encoded, encode
from segquant.kernels.packed import weight_codes
from segquant.kernels.tiles import candidates as tile_candidates

SMALL_ROWS = 16
CODE = ActivationCode


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
    from segquant.kernels.encode import blocks_of

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


# bfloat16 output is off by half of its last bit; of the largest value, 2^-9.
CLOSE = 2.0**-8
FLOAT_CLOSE = 2.0**-6  # sums in another order and type


def candidates(setting: Setting) -> list[Candidate]:
    """16 bit and our ways, as far as they apply to the shape on its device; see `peers`."""
    return [*_sixteen_bit(setting), *_ours(setting)]


def _sixteen_bit(setting: Setting) -> list[Candidate]:
    x, w, bias = setting.x, setting.weight, setting.bias
    shared: dict[str, Any] = {"expected": setting.exact_float, "tolerance": FLOAT_CLOSE}
    eager = Candidate(
        name="bf16", what="nn.Linear in bfloat16", call=lambda: F.linear(x, w, bias), **shared
    )
    if not setting.compiled:
        return [eager]
    made = torch.compile(F.linear, dynamic=False)
    call = partial(made, x, w, bias)
    what = "the same under torch.compile"
    return [eager, Candidate(name="bf16 compiled", what=what, call=call, **shared)]


def _ours(setting: Setting) -> list[Candidate]:
    found = []
    codes = [CODE.symmetric, CODE.zero_point, CODE.dual]
    for code in codes:
        found += _way(setting, code.name, setting.packed(code))
    if setting.shape.in_features % 2 == 0:
        found += _way(setting, "w4a8", setting.packed(CODE.symmetric, weight_bits=4))
    if setting.device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 9):
        found += _way(setting, "fp8", setting.packed(CODE.fp8))
    return found


def _way(setting: Setting, name: str, packed: PackedLinear) -> list[Candidate]:
    """The layer through the door, and (where that is another call) its product alone."""
    x, rows = setting.x, setting.shape.rows
    choice = choose(packed, rows=rows, device=Device.of(setting.device))
    shared: dict[str, Any] = {
        "expected": lambda: setting.exact_codes(packed),
        "tolerance": CLOSE if packed.plan.integer else FLOAT_CLOSE,
        "execution": choice.way.execution,
        "products": packed.plan.codes[0].planes,
    }
    whole = Candidate(
        name=name,
        what=f"{packed.plan.name()}, encoding included ({choice.way.name}: {choice.reason})",
        call=lambda: quantized_linear(x, packed),
        **shared,
    )
    if choice.way in (Way.triton_small, Way.scaled_mm, Way.simulated):
        return [whole]
    encoded = encode_input(x, packed, Producer.none)
    alone = replace(
        whole,
        name=f"{name} product",
        what=f"{packed.plan.name()}, the product and its epilogue alone",
        call=lambda: product(encoded, packed),
    )
    return [whole, alone]


def product(encoded: Encoded, packed: PackedLinear, **more: Any) -> Tensor:
    """The product of codes that lie ready; `more` goes to the launch (a tile)."""
    from segquant.kernels import operators
    from segquant.kernels import triton_launch as launch

    if more:
        return launch.product(
            encoded.codes,
            packed.weight,
            scale_GSPT=encoded.scale_GSPT,
            weight_scale_SN=packed.weight_scale_SN,
            shift_GST=None,
            column_sum_SN=None,
            bias_N=packed.bias_N,
            rows=encoded.rows,
            segments=packed.plan.segments,
            planes=packed.plan.planes,
            runs=packed.flat_runs,
            dtype=packed.dtype,
            **{"inner_GTR": None, "up_NR": None, **more},
        )
    made: Tensor = operators.coded_product(
        encoded.codes,
        packed.weight,
        encoded.scale_GSPT,
        packed.weight_scale_SN,
        None,
        None,
        packed.bias_N,
        None,
        None,
        encoded.rows,
        packed.plan.segments,
        packed.plan.planes,
        packed.flat_runs,
        packed.dtype,
    )
    return made


def tiles(setting: Setting, code: ActivationCode) -> list[Candidate]:
    """Every tile of the rule's list; Triton only."""
    if not setting.triton:
        return []
    packed = setting.packed(code)
    encoded = encode_input(setting.x, packed, Producer.none)
    return [
        Candidate(
            name=f"{code.name} tile {tile.bm}x{tile.bn}x{tile.bk}w{tile.warps}",
            what="one tile of the rule's list",
            call=partial(product, encoded, packed, tile=tile),
            expected=lambda: setting.exact_codes(packed),
            tolerance=CLOSE,
            products=code.planes,
        )
        for tile in tile_candidates(stacked=code.planes == 2, packed=False)
    ]


def extras(setting: Setting) -> list[Candidate]:
    """What the epilogue can take on, beside the plain product; Triton only."""
    if not setting.triton or setting.shape.rows <= SMALL_ROWS:
        return []
    packed = setting.packed(CODE.symmetric)
    encoded = encode_input(setting.x, packed, Producer.none)
    rank, shape = 32, setting.shape
    up_NR = torch.zeros(shape.out_features, rank, device=setting.device, dtype=packed.dtype)
    inner = torch.zeros(1, shape.rows, rank, device=setting.device, dtype=packed.dtype)
    inverse = torch.full((2, shape.out_features), 40.0, device=setting.device)
    hidden = partial(product, encoded, packed, producer="gelu_tanh")
    codes = partial(hidden, next_inverse_PN=inverse)

    def expected_codes() -> Tensor:
        value = F.gelu(setting.exact_codes(packed), approximate="tanh") * 40.0
        return value.clamp(-128, 127).round().flatten()

    exact = partial(setting.exact_codes, packed)
    return [
        Candidate(
            name="symmetric product, rank 32",
            what="with a low-rank up-projection in the epilogue",
            call=partial(product, encoded, packed, inner_GTR=inner, up_NR=up_NR),
            expected=exact,
            tolerance=CLOSE,
        ),
        Candidate(
            name="symmetric product, gelu and codes",
            what="GELU and the next layer's static codes in the epilogue",
            call=partial(codes, next_code="symmetric"),
            expected=expected_codes,
            tolerance=1 / 100,  # a tie may fall the other way: one code of some 127
        ),
    ]


def encoders(setting: Setting) -> list[Candidate]:
    """The static encoding alone: what it costs where no producer takes it over."""
    found = []
    for code in (CODE.symmetric, CODE.dual):
        packed = setting.packed(code)
        found.append(
            Candidate(
                name=f"encode {code.name}",
                what="static codes of the input alone",
                call=partial(_codes, setting.x, packed),
                expected=partial(_plain_codes, setting.x, packed),
                tolerance=0.0,
                execution="kernel" if setting.device.type in ("cuda", "cpu") else "simulated",
                products=code.planes,
            )
        )
    return found


def _codes(x: Tensor, packed: PackedLinear) -> Tensor:
    return encode_input(x, packed, Producer.none).codes


def _plain_codes(x: Tensor, packed: PackedLinear) -> Tensor:
    return encode(x, plan=packed.plan, tensors=packed.tensors).codes.double()
