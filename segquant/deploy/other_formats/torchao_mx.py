"""MX blocks as torchao's `MXTensor`: codes, a power of two for each block of 32, and the same rule
for the activations as they come. Written with torchao's emulated product, which runs anywhere.

Legend: O output features, I input features, N blocks of input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segquant.core.floats import ScaleRounding
from segquant.core.grids import pack_int4
from segquant.core.linear import QuantLinear
from segquant.core.schemes import NumberFormat
from segquant.deploy.other_formats.layer_facts import Beyond, beyond, group_size

BLOCK = 32
MX = (NumberFormat.mxfp4, NumberFormat.mxfp8)
FP4_BITS = 4


def is_mx(layer: QuantLinear) -> bool:
    return layer.spec.weight.number_format in MX


def mx_obstacles(layer: QuantLinear) -> list[str]:
    weight, activation = layer.spec.weight, layer.spec.activation
    found = beyond(layer)
    if layer.smoothing is not None or layer.input_scale is not None:
        found = [why for why in found if why not in (Beyond.smoothing.value, Beyond.balance.value)]
        found.append("smoothing before MX blocks: it has a vector for int8 alone")
    if activation.number_format is not weight.number_format:
        found.append("MX weights without activations of the same: its product takes both")
    elif activation.scale_rounding is not weight.scale_rounding:
        found.append("MX scales of weights and activations that are not rounded alike")
    if group_size(layer) != BLOCK:
        found.append(f"a last block of fewer than {BLOCK} input features")
    if layer.row_factors is not None:
        found.append("factors of rows, where scales are powers of two")
    return found


def mx_weight(layer: QuantLinear) -> Any:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs
    from torchao.quantization.quantize_.common import KernelPreference

    weight = layer.spec.weight
    fp4 = weight.num_bits == FP4_BITS
    element = torch.float4_e2m1fn_x2 if fp4 else torch.float8_e4m3fn
    up = weight.scale_rounding is ScaleRounding.ceil
    asked = QuantizeTensorToMXKwargs(
        elem_dtype=element,
        block_size=BLOCK,
        scaling_mode=ScaleCalculationMode.RCEIL if up else ScaleCalculationMode.FLOOR,
        kernel_preference=KernelPreference.EMULATED,
    )
    return MXTensor(
        _codes(layer, fp4=fp4),
        layer.weight_scale.to(torch.float8_e8m0fnu),
        element,
        BLOCK,
        layer.dtype,
        KernelPreference.EMULATED,
        asked,
        False,
    )


def _codes(layer: QuantLinear, *, fp4: bool) -> Tensor:
    codes_OI = layer.integer_codes()
    return pack_int4(codes_OI) if fp4 else codes_OI.view(torch.float8_e4m3fn)
