"""compressed-tensors: what vLLM, and transformers through that library, read.

A weight's codes and a static activation's scale go over as they are: integers as `int-quantized`
(8 bits) or `pack-quantized` (fewer, or weights alone), fp8 as `float-quantized`. Source: the
library's own compressors (compressed-tensors 0.20), whose dequantization the tests compare with.

Legend: O output features, I input features, N blocks of input features.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from segquant.core.linear import QuantLinear
from segquant.core.schemes import Granularity, NumberFormat, TensorScheme
from segquant.core.spec_json import dtype_name
from segquant.deploy.other_formats.form_interface import Conversion, Form, Layers
from segquant.deploy.other_formats.layer_facts import (
    beyond,
    group_size,
    has_one_weight_scale,
    is_e4m3,
    is_integer,
    row_scales,
)

BYTE = 8


def _obstacles(layer: QuantLinear) -> list[str]:
    spec, found = layer.spec, beyond(layer)
    weight, activation = spec.weight, spec.activation
    if not is_integer(layer) and not is_e4m3(layer):
        found += _of_other_numbers(weight, activation)
    elif activation.quantized and activation.dynamic:
        found.append(_dynamic(activation))
    if group_size(layer) is None:
        found.append("groups of unequal size")
    if layer.dtype is not torch.float32:
        found.append(
            f"in {dtype_name(layer.dtype)}: the library computes in the type of the scales, and "
            "scales rounded to it are others (load the denoiser with torch_dtype=torch.float32)"
        )
    return found


def _of_other_numbers(weight: TensorScheme, activation: TensorScheme) -> list[str]:
    if not weight.microscaled:
        return ["weights and activations that are not both integers or both fp8 e4m3"]
    found = []
    if weight.num_bits < BYTE:
        found.append("blocks of 4-bit floats: the library unpacks such weights to bfloat16")
    if activation.quantized and weight.number_format is not NumberFormat.nvfp4:
        found.append(
            "activations in MX blocks: its power of two goes up from 1.75 on, neither always down "
            "nor where something would saturate"
        )
    return found or ["MX weights with activations in 16 bit: not written here"]


def _dynamic(scheme: TensorScheme) -> str:
    """Its step is amax over half the range, ours amax over the largest code."""
    if not _is_whole(scheme):
        return "dynamic fp8 activations: not written here"
    top = 2 ** (scheme.num_bits - 1)
    what = scheme.granularity.name.replace("_", " ")
    return f"activations {what} as they come: its step is amax/{top - 0.5:g}, not amax/{top - 1}"


def _is_whole(scheme: TensorScheme) -> bool:
    return scheme.number_format is NumberFormat.integer


def _arguments(scheme: TensorScheme, *, strategy: str, size: int | None) -> dict[str, Any]:
    return {
        "num_bits": scheme.num_bits,
        "type": "int" if _is_whole(scheme) else "float",
        "symmetric": True,
        "strategy": strategy,
        "group_size": size,
        "dynamic": False,
    }


def _strategy(layer: QuantLinear) -> tuple[str, int | None]:
    if len(layer.spec.weight_blocks) > 1:
        return "group", group_size(layer)
    return ("tensor" if has_one_weight_scale(layer) else "channel"), None


def _scheme(layer: QuantLinear) -> dict[str, Any]:
    strategy, size = _strategy(layer)
    weight, activation = layer.spec.weight, layer.spec.activation
    static = None
    if activation.quantized:
        assert activation.granularity is Granularity.per_tensor
        static = _arguments(activation, strategy="tensor", size=None)
    return {
        "weights": _arguments(weight, strategy=strategy, size=size),
        "input_activations": static,
        "output_activations": None,
        "format": _format(layer),
    }


def _format(layer: QuantLinear) -> str:
    if not is_integer(layer):
        return "float-quantized"
    whole = layer.spec.weight.num_bits == BYTE and layer.spec.activation.quantized
    return "int-quantized" if whole else "pack-quantized"


def _layer_tensors(layer: QuantLinear) -> dict[str, Tensor]:
    codes_OI = layer.integer_codes()
    strategy, _ = _strategy(layer)
    scale = layer.weight_scale.reshape(1) if strategy == "tensor" else row_scales(layer)
    tensors = {"weight_scale": scale, **_codes(layer, codes_OI)}
    if layer.activation_scale is not None:
        tensors["input_scale"] = layer.activation_scale.reshape(1)
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    return tensors


def _codes(layer: QuantLinear, codes_OI: Tensor) -> dict[str, Tensor]:
    form = _format(layer)
    if form == "float-quantized":
        return {"weight": codes_OI.view(torch.float8_e4m3fn)}
    if form == "int-quantized":
        return {"weight": codes_OI}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = pack_to_int32(codes_OI.cpu(), layer.spec.weight.num_bits)
    return {"weight_packed": packed, "weight_shape": torch.tensor(codes_OI.shape)}


def _convert(layers: Layers, others: dict[str, Tensor], dimensions: dict[str, int]) -> Conversion:
    import compressed_tensors

    groups: dict[str, dict[str, Any]] = {}
    tensors = dict(others)
    for name, layer in layers.items():
        scheme = _scheme(layer)
        group = groups.setdefault(json.dumps(scheme, sort_keys=True), {**scheme, "targets": []})
        group["targets"].append(name)
        tensors |= {f"{name}.{key}": value for key, value in _layer_tensors(layer).items()}
    formats = {group["format"] for group in groups.values()}
    config = {
        "quant_method": "compressed-tensors",
        "version": compressed_tensors.__version__,
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": {f"group_{at}": group for at, group in enumerate(groups.values())},
        "ignore": [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    return Conversion(tensors=tensors, quantization_config=config)


COMPRESSED_TENSORS = Form(
    name="compressed-tensors",
    library="compressed_tensors",
    how_to_load="compressed-tensors itself (docs/formats.md), or what reads its checkpoints",
    obstacles=_obstacles,
    convert=_convert,
)
