"""What is timed at each shape: our ways, the libraries', and the naive ones, each with its check.

A candidate is checked against float64 on fresh random input before its time is taken, as its
`expected` gives it: the codes' own product, or (for 16 bit) the float product.

Legend: M rows, K input features, N output features.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.speed.setting import CLOSE, FLOAT_CLOSE, SMALL_ROWS, Candidate, Setting
from segquant.kernels import (
    ActivationCode,
    Device,
    PackedLinear,
    Producer,
    Way,
    choose,
    quantized_linear,
)
from segquant.kernels.door import encode_input
from segquant.kernels.encode import Encoded, encode
from segquant.kernels.product import CodedProduct
from segquant.kernels.tiles import candidates as tile_candidates

CODE = ActivationCode


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
    ways = []
    for code in (CODE.symmetric, CODE.zero_point, CODE.dual):
        ways += _way(setting, code.name, setting.packed(code))
    if setting.shape.in_features % 2 == 0:
        ways += _way(setting, "w4a8", setting.packed(CODE.symmetric, weight_bits=4))
    if setting.device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 9):
        ways += _way(setting, "fp8", setting.packed(CODE.fp8))
    return ways


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


def product(
    encoded: Encoded,
    packed: PackedLinear,
    *,
    inner_GTR: Tensor | None = None,
    up_NR: Tensor | None = None,
    **more: Any,
) -> Tensor:
    """The product of codes that lie ready; `more` goes to the launch (a tile)."""
    from segquant.kernels import operators
    from segquant.kernels import triton_launch as launch

    job = replace(CodedProduct.of(encoded, packed, inner_GTR=inner_GTR), up_NR=up_NR)
    if more or up_NR is not None:
        return launch.product(job, dtype=packed.dtype, **more)
    return operators.coded_product(job, dtype=packed.dtype)


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
    alone = []
    for code in (CODE.symmetric, CODE.dual):
        packed = setting.packed(code)
        alone.append(
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
    return alone


def _codes(x: Tensor, packed: PackedLinear) -> Tensor:
    return encode_input(x, packed, Producer.none).codes


def _plain_codes(x: Tensor, packed: PackedLinear) -> Tensor:
    return encode(x, plan=packed.plan, tensors=packed.tensors).codes.double()
