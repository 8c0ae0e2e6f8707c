"""torchao: its tensors in safetensors, as diffusers' TorchAoConfig loads them.

The file is flattened by torchao's own safetensors support; nothing is pickled. A static activation
scale there has as many dimensions as the layer's input, so how many these are has to be known.
Integers are its `Int8Tensor`, MX blocks its `MXTensor` (`torchao_mx`). Source: torchao 0.18.

Legend: O output features, I input features, N blocks of input features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segquant.core.linear import QuantLinear
from segquant.core.schemes import Granularity, TensorScheme
from segquant.deploy.other_formats.form_interface import Conversion, Form, Layers
from segquant.deploy.other_formats.layer_facts import (
    Beyond,
    beyond,
    divisor,
    group_size,
    has_one_weight_scale,
    is_integer,
    row_scales,
)
from segquant.deploy.other_formats.torchao_mx import is_mx, mx_obstacles, mx_weight

BYTE = 8
INT8_MAX = 127


def _obstacles(layer: QuantLinear) -> list[str]:
    if is_mx(layer):
        return mx_obstacles(layer)
    spec = layer.spec
    weight, activation = spec.weight, spec.activation
    found = beyond(layer, known=(Beyond.smoothing, Beyond.balance))
    if not is_integer(layer):
        found.append(_other(weight))
    elif activation.quantized and activation.dynamic:
        found.append(_dynamic(activation))
    elif activation.quantized and activation.num_bits != BYTE:
        found.append(f"activations in {activation.num_bits} bits: its integers have 8")
    if group_size(layer) is None:
        found.append("groups of unequal size")
    elif activation.quantized and weight.granularity is Granularity.per_group:
        found.append(
            "groups of weights with quantized activations: its product has one scale a row"
        )
    return found


def _other(weight: TensorScheme) -> str:
    if weight.microscaled:
        return "nvfp4: its product runs on a GPU alone, and was not tried"
    return "fp8 activations with a static scale: its safetensors have none for fp8"


def _dynamic(scheme: TensorScheme) -> str:
    what = scheme.granularity.name.replace("_", " ")
    top = 2 ** (scheme.num_bits - 1)
    said = f"activations {what} as they come: "
    if scheme.num_bits != BYTE:
        return f"{said}{scheme.num_bits} bits, and its integers have 8"
    return f"{said}its step is amax/{top - 0.5:g}, not amax/{top - 1}"


def _is_static(layer: QuantLinear) -> bool:
    return layer.spec.activation.quantized and not is_mx(layer)


def _weight(layer: QuantLinear, dimensions: int | None) -> Any:
    from torchao.quantization import Int8Tensor, PerTensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    scale_ON = layer.weight_scale if has_one_weight_scale(layer) else row_scales(layer)
    rows = layer.out_features if scale_ON.shape[0] == 1 else 1
    asked = _is_static(layer)
    divisor_I = divisor(layer)
    return Int8Tensor(
        layer.integer_codes(),
        scale_ON,
        block_size=[rows, layer.in_features // scale_ON.shape[1]],
        dtype=layer.dtype,
        act_quant_scale=_static_scale(layer, dimensions) if asked else None,
        act_pre_scale=None if divisor_I is None else 1 / divisor_I,
        act_quant_kwargs=QuantizeTensorToInt8Kwargs(granularity=PerTensor()) if asked else None,
    )


def _static_scale(layer: QuantLinear, dimensions: int | None) -> Tensor:
    assert layer.activation_scale is not None
    assert dimensions is not None
    return layer.activation_scale.reshape((1,) * dimensions)


def _convert(layers: Layers, others: dict[str, Tensor], dimensions: dict[str, int]) -> Conversion:
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Int8StaticActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerTensor,
    )

    state: dict[str, Any] = {name: tensor.detach() for name, tensor in others.items()}
    for name, layer in layers.items():
        one = mx_weight(layer) if is_mx(layer) else _weight(layer, dimensions.get(name))
        state[f"{name}.weight"] = one
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.detach()
    # Read back for estimates of size alone: the file says of each tensor what it is.
    static = any(_is_static(layer) for layer in layers.values())
    kind = (
        Int8StaticActivationInt8WeightConfig(granularity=PerTensor())
        if static
        else Int8WeightOnlyConfig()
    )
    tensors, metadata = flatten_tensor_state_dict(state)
    config = {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(kind)},
        "modules_to_not_convert": None,
    }
    return Conversion(tensors=tensors, quantization_config=config, metadata=metadata)


TORCHAO = Form(
    name="torchao",
    library="torchao",
    how_to_load="diffusers' from_pretrained with torchao installed, in the denoiser's own type",
    obstacles=_obstacles,
    convert=_convert,
    asks_dimensions=_is_static,
)
