"""The one door: a quantized layer's output, by the way that suits device and shape.

Legend: T rows, I input features, N output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.kernels import operators
from segquant.kernels.choice import SMALL_ROWS, small_fits
from segquant.kernels.encode import Encoded, Producer, Steps, encode
from segquant.kernels.packed import PackedLinear, low_rank_inner
from segquant.kernels.product import CodedProduct


def quantized_linear(
    x: Tensor, packed: PackedLinear, *, producer: Producer = Producer.none
) -> Tensor:
    """A packed layer on an input [..., I]; the output is [..., N] in the layer's type.

    Args:
        producer: applied to the input on the way to its codes, so that it is never stored.

    Raises:
        ValueError: the input has another number of features than the layer.
    """
    if x.shape[-1] != packed.plan.in_features:
        raise ValueError(
            f"an input with {x.shape[-1]} features for a layer of {packed.plan.in_features}"
        )
    x_TI = x.reshape(-1, x.shape[-1])
    # Nothing here but the device's kind and the number of rows decides, so that it can be traced;
    # the operators look further when they run. `choose` says what comes of it.
    if not packed.plan.integer:
        output_TN = _fp8(x_TI, packed, producer)
    elif x.device.type == "cuda" and x_TI.shape[0] <= SMALL_ROWS and small_fits(packed):
        output_TN = _small(x_TI, packed, producer)
    else:
        output_TN = _integer(x_TI, packed, producer)
    return output_TN.view(*x.shape[:-1], packed.out_features)


def encode_input(x_TI: Tensor, packed: PackedLinear, producer: Producer) -> Encoded:
    """Codes by a kernel in eager CUDA; in plain torch elsewhere, for Inductor to fuse.

    An exported program has the operator, whose output's size is known for any number of rows:
    the groups of rows in plain torch are more than export's arithmetic can follow.
    """
    plan, tensors = packed.plan, packed.tensors
    eager = x_TI.device.type == "cuda" and not torch.compiler.is_compiling()
    if (
        not (eager or torch.compiler.is_exporting())
        or plan.steps is not Steps.static
        or not plan.integer
    ):
        return encode(x_TI, plan=plan, tensors=tensors, producer=producer)
    assert tensors.inverse_GPI is not None
    assert tensors.scale_GSP is not None
    codes = operators.encode_static(
        x_TI,
        tensors.inverse_GPI,
        tensors.zero_GI,
        plan.segments,
        ",".join(code.name for code in plan.codes),
        plan.num_bits,
        producer.name,
    )
    scale = tensors.scale_GSP[..., None]
    return Encoded(codes=codes, scale_GSPT=scale, shift_GST=None, rows=x_TI.shape[0])


def _integer(x_TI: Tensor, packed: PackedLinear, producer: Producer) -> Tensor:
    encoded = encode_input(x_TI, packed, producer)
    if packed.down_RI is not None and producer is not Producer.none:
        x_TI = producer.apply(x_TI)
    job = CodedProduct.of(encoded, packed, inner_GTR=low_rank_inner(x_TI, packed))
    return operators.coded_product(job, dtype=packed.dtype)


def _small(x_TI: Tensor, packed: PackedLinear, producer: Producer) -> Tensor:
    tensors = packed.tensors
    assert tensors.inverse_GPI is not None
    assert tensors.scale_GSP is not None
    output_TN: Tensor = operators.small_product(
        x_TI,
        packed.weight,
        tensors.inverse_GPI[0],
        tensors.scale_GSP[0, 0],
        packed.weight_scale_SN[0],
        packed.bias_N,
        producer.name,
        packed.plan.num_bits,
        packed.dtype,
    )
    return output_TN


def _fp8(x_TI: Tensor, packed: PackedLinear, producer: Producer) -> Tensor:
    encoded = encode(x_TI, plan=packed.plan, tensors=packed.tensors, producer=producer)
    codes_GTI = encoded.codes.view(packed.plan.groups, *x_TI.shape)
    outputs = [
        operators.fp8_product(
            codes_GTI[group],
            packed.weight[first:last],
            encoded.scale_GSPT[group, 0, 0],
            packed.weight_scale_SN[0, first:last],
            None if packed.bias_N is None else packed.bias_N[first:last],
            packed.dtype,
        )
        for group, first, last in packed.runs
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
