"""What our ways are timed against: libraries' products, and DualScale done naively.

Legend: M rows, K input features, N output features.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.speed.setting import CLOSE, FLOAT_CLOSE, SMALL_ROWS, Candidate, Setting
from segquant.kernels import ActivationCode
from segquant.kernels.choice import INT_MM_MIN_ROWS, Facts, int_mm_fits
from segquant.kernels.encode import encode


def peers(setting: Setting) -> list[Candidate]:
    """All of them, as far as they apply to the shape on its device."""
    return [*libraries(setting), *naive_dual(setting)]


def libraries(setting: Setting) -> list[Candidate]:
    packed = setting.packed(ActivationCode.symmetric)
    if not int_mm_fits(Facts.of(packed), rows=setting.shape.rows) and setting.device.type == "cuda":
        return []
    if not setting.compiled and setting.shape.rows <= SMALL_ROWS:
        return []
    encoded = encode(setting.x, plan=packed.plan, tensors=packed.tensors)
    x, w = encoded.codes.view(setting.x.shape), packed.weight
    step = encoded.scale_GSPT[0, 0, 0, 0] * packed.weight_scale_SN[0]
    assert packed.bias_N is not None
    bias = packed.bias_N

    def whole(x: Tensor, w: Tensor, step: Tensor, bias: Tensor) -> Tensor:
        return (torch._int_mm(x, w.T).float() * step + bias).to(torch.bfloat16)

    epilogue = torch.compile(whole, dynamic=False) if setting.compiled else whole
    products = [
        Candidate(
            name="_int_mm",
            what="torch._int_mm alone: int32 output, nothing applied",
            call=lambda: torch._int_mm(x, w.T),
            expected=lambda: x.double() @ w.double().T,
            tolerance=0.0,
        ),
        Candidate(
            name="_int_mm + epilogue",
            what=f"torch._int_mm with scales and bias{', compiled' * setting.compiled}",
            call=lambda: epilogue(x, w, step, bias),
            expected=lambda: setting.exact_codes(packed),
            tolerance=CLOSE,
        ),
    ]
    return products + _torchao(setting)


def _torchao(setting: Setting) -> list[Candidate]:
    if find_spec("torchao") is None or setting.device.type != "cuda":
        return []
    from torchao.quantization import (  # type: ignore[import-not-found, unused-ignore]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    linear = nn.Linear(setting.shape.in_features, setting.shape.out_features)
    linear = linear.to(setting.device, torch.bfloat16)
    linear.weight.data, linear.bias.data = setting.weight, setting.bias
    model = nn.Sequential(linear)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    compiled, x = torch.compile(model, dynamic=False), setting.x
    return [
        Candidate(
            name="torchao",
            what="torchao int8 weights, int8 activations by token, compiled",
            call=lambda: compiled(x),
            expected=setting.exact_float,
            tolerance=0.05,
        )
    ]


def naive_dual(setting: Setting) -> list[Candidate]:
    """DualScale as two products with float32 temporaries, in plain torch: what it costs unfused."""
    packed, rows = setting.packed(ActivationCode.dual), setting.shape.rows
    padded = max(rows, INT_MM_MIN_ROWS)  # which the product asks for on CUDA
    if not int_mm_fits(Facts.of(packed), rows=padded) and setting.device.type == "cuda":
        return []
    x, w, tensors = setting.x, packed.weight, packed.tensors
    assert tensors.scale_GSP is not None
    assert packed.bias_N is not None
    positive, negative = tensors.scale_GSP[0, 0]
    scale_N, bias_N = packed.weight_scale_SN[0], packed.bias_N

    def call() -> Tensor:
        wide = F.pad(x.float(), (0, 0, 0, padded - rows))
        above = (wide / positive).round().clamp(0, 127).to(torch.int8)
        below = (wide / negative).round().clamp(-128, 0).to(torch.int8)
        first = torch._int_mm(above, w.T).float() * positive
        second = torch._int_mm(below, w.T).float() * negative
        return ((first + second)[:rows] * scale_N + bias_N).to(torch.bfloat16)

    return [
        Candidate(
            name="dual, two products",
            what="DualScale as two products with float32 temporaries, eager torch",
            call=call,
            expected=lambda: setting.exact_codes(packed),
            tolerance=FLOAT_CLOSE,
            products=2,
        )
    ]
