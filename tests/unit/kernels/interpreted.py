"""Runs the Triton kernels in Triton's interpreter and prints, as JSON, how far each case is off.

A process of its own: TRITON_INTERPRET=1 has to be set before Triton is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from segquant.kernels import ActivationCode, PackedLinear, Producer, Steps, quantized_linear
from segquant.kernels import triton_launch as launch
from segquant.kernels.encode import blocks_of, encode
from segquant.kernels.packed import low_rank_inner
from segquant.kernels.product import CodedProduct
from segquant.kernels.tiles import Tile
from tests.unit.kernels.cases import CODES, SHAPES, inputs, layer

CODE = ActivationCode
SMALL = Tile(bm=16, bn=32, bk=32, warps=4, stages=1)
CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(name: str, function: Callable[[], dict[str, Any]]) -> None:
    CASES[name] = function


def compare(
    output: torch.Tensor, expected: torch.Tensor, *, rounding: torch.Tensor | None = None
) -> dict[str, Any]:
    """`exact`: equal bits. `error`: largest difference over the largest value.

    Args:
        rounding: how far apart each element may be; with it, `rounded` says whether all are nearer.
    """
    if not torch.equal(output.isnan(), expected.isnan()):
        return {"exact": False, "error": 1e9}
    output, expected = output.double().nan_to_num(0.0), expected.double().nan_to_num(0.0)
    scale = max(float(expected.abs().max()), 1e-30)
    off = (output - expected).abs()
    return {
        "exact": bool(torch.equal(output, expected)),
        "error": float(off.max()) / scale,
        "rounded": rounding is not None and bool((off <= rounding).all()),
    }


def branch_rounding(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor | None:
    """How far apart two float32 outputs may be whose low-rank sums run in another order [T, N].

    `inner @ up^T` is the one float sum here whose order is free: a BLAS orders (and contracts) it
    by the CPU and by the sizes, and the kernel pads the rank. Each of its R products goes through
    at most R roundings, so in either order it is within `g * |inner| @ |up|^T` of the exact sum,
    g = R u / (1 - R u) and u = 2^-24 (Higham, Accuracy and Stability, 2nd ed., section 3.1).
    Adding it to the rest rounds once more on either side. Integers, steps and bias are the same.
    """
    inner_GTR, up_NR = low_rank_inner(x, packed), packed.up_NR
    if inner_GTR is None or up_NR is None:
        return None
    unit = 2.0**-24
    growth = up_NR.shape[1] * unit / (1 - up_NR.shape[1] * unit)
    rounding = quantized_linear(x, packed).double().abs()
    rounding *= 2 * unit / (1 - unit)
    for group, first, last in packed.runs:
        size = inner_GTR[group].double().abs() @ up_NR[first:last].double().abs().T
        rounding[:, first:last] += 2 * growth * size * (1 + unit)
    return rounding


def product(x: torch.Tensor, packed: PackedLinear, tile: Tile = SMALL, **more: Any) -> torch.Tensor:
    encoded = encode(x, plan=packed.plan, tensors=packed.tensors)
    job = CodedProduct.of(encoded, packed, inner_GTR=low_rank_inner(x, packed))
    return launch.product(job, dtype=packed.dtype, tile=tile, **more)


def whole(x: torch.Tensor, out: int, **more: Any) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        packed = layer(x, out, **more)
        return compare(
            product(x, packed),
            quantized_linear(x, packed),
            rounding=branch_rounding(x, packed),
        )

    return run


def codes_of(
    x: torch.Tensor, packed: PackedLinear, producer: Producer = Producer.none
) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        plan, tensors = packed.plan, packed.tensors
        assert tensors.inverse_GPI is not None
        found = launch.encode(
            x,
            tensors.inverse_GPI,
            tensors.zero_GI,
            segments=plan.segments,
            codes=",".join(code.name for code in plan.codes),
            num_bits=plan.num_bits,
            producer=producer.name,
        )
        plain = encode(x, plan=plan, tensors=tensors, producer=producer).codes
        # Rows that only fill up a group hold no values: compared plane by plane, without them.
        groups = [blocks_of(codes, plan=plan, rows=x.shape[0]) for codes in (found, plain)]
        pairs = zip(*([p for g in one for s in g for p in s] for one in groups), strict=True)
        off = sum(int((a != b).sum()) for a, b in pairs)
        return {"exact": off == 0, "error": off / plain.numel()}

    return run


def small(
    x: torch.Tensor, out: int, code: CODE, producer: Producer
) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        packed = layer(producer.apply(x), out, codes=[code])
        tensors = packed.tensors
        assert tensors.inverse_GPI is not None
        assert tensors.scale_GSP is not None
        found = launch.small(
            x,
            packed.weight,
            tensors.inverse_GPI[0],
            tensors.scale_GSP[0, 0],
            packed.weight_scale_SN[0],
            packed.bias_N,
            producer=producer.name,
            num_bits=8,
            dtype=torch.float32,
        )
        return compare(found, quantized_linear(x, packed, producer=producer))

    return run


def fused_feed_forward(code: CODE) -> dict[str, Any]:
    """The first product of a feed-forward, its GELU, and the codes of the second, in one."""
    x = inputs("normal", 21, 40)
    first = layer(x, 48, codes=[CODE.symmetric])
    hidden = F.gelu(quantized_linear(x, first), approximate="tanh")
    second = layer(hidden, 8, codes=[code], smooth=True)
    inverse = second.tensors.inverse_GPI
    assert inverse is not None
    found = product(
        x,
        first,
        producer="gelu_tanh",
        next_code=code.name,
        next_inverse_PN=inverse[0].contiguous(),
    )
    plain = encode(hidden, plan=second.plan, tensors=second.tensors).codes
    off = (found - plain).abs()
    # tanh and exp differ in the last bit between libraries: a tie may fall the other way.
    return {"exact": bool((off == 0).all()), "error": float((off > 1).any() or off.sum() > 3)}


def register() -> None:
    for code in CODES:
        for steps in (Steps.static, Steps.token):
            rows, out, features = SHAPES[CODES.index(code) % len(SHAPES)]
            more = {"codes": [code], "steps": steps}
            gelu = inputs("gelu", rows, features)
            case(f"{code.name} {steps.name}", whole(gelu, out, **more))
        for kind in ("positive", "negative", "extreme"):
            x = inputs(kind, 9, 40)
            case(f"{code.name} {kind}", whole(x, 17, codes=[code]))
        broken = inputs("gelu", 9, 40)
        packed = layer(broken, 8, codes=[code], smooth=True)
        broken[1, 2], broken[3, 4], broken[8, 39] = float("nan"), float("inf"), -float("inf")
        case(f"codes {code.name} with nan", codes_of(broken, packed))
    x = torch.cat([inputs("normal", 21, 24), inputs("gelu", 21, 40, seed=1)], 1)
    cut = {"codes": [CODE.symmetric, CODE.dual], "segments": (24, 40)}
    case("segments of input and output", whole(x, 50, **cut, output=(7, 33, 10)))
    case("segments by token", whole(x, 50, **cut, output=(7, 43), steps=Steps.token))
    three = {"codes": [CODE.high_low, CODE.symmetric, CODE.zero_point], "segments": (10, 14, 40)}
    case("three segments by token", whole(x, 9, **three, steps=Steps.token, bias=False))
    case("one-plane segments", whole(x, 9, codes=[CODE.symmetric] * 2, segments=(24, 40)))
    case("low rank", whole(x, 50, codes=[CODE.dual], rank=5, output=(20, 30)))
    case("float16 output", whole(x, 50, codes=[CODE.dual], dtype=torch.float16))
    case("bfloat16 output", whole(x, 50, codes=[CODE.dual], dtype=torch.bfloat16))
    for code in (CODE.symmetric, CODE.dual):
        four = {"codes": [code], "weight_bits": 4}
        case(f"4-bit weights {code.name}", whole(x, 50, **four))
        more = {"steps": Steps.token, "output": (20, 30), "rank": 5}
        case(f"4-bit weights {code.name}, all at once", whole(x, 50, **four, **more))
    case(
        "4-bit weights zero point",
        whole(x, 9, codes=[CODE.zero_point], weight_bits=4, steps=Steps.token),
    )
    nan = inputs("gelu", 9, 40)
    nan[4, 4] = float("nan")
    case("a row with nan by token", whole(nan, 9, codes=[CODE.dual], steps=Steps.token))
    packed = layer(x, 8, **cut, output=(3, 5))
    case("codes of segments", codes_of(x, packed))
    for producer in Producer:
        made = layer(producer.apply(x), 8, codes=[CODE.dual])
        case(f"codes after {producer.name}", codes_of(x, made, producer))
    for rows in (1, 2, 16):
        for code in (CODE.symmetric, CODE.dual):
            wide = inputs("normal", rows, 100)
            case(f"few rows {rows} {code.name}", small(wide, 45, code, Producer.none))
    case("few rows after SiLU", small(inputs("normal", 3, 300), 45, CODE.dual, Producer.silu))
    for code in (CODE.symmetric, CODE.dual):
        case(f"fused feed-forward {code.name}", lambda code=code: fused_feed_forward(code))


if __name__ == "__main__":
    register()
    wanted = sys.argv[1:]
    chosen = {k: f for k, f in CASES.items() if not wanted or any(w in k for w in wanted)}
    results = {}
    for name, function in chosen.items():
        try:
            results[name] = function()
        except Exception as error:
            results[name] = {"exact": False, "error": 1e9, "raised": repr(error)[:2000]}
    sys.stdout.write(json.dumps(results, indent=1))
