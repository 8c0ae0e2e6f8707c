"""The one door: a quantized layer's output, by the way that suits device and shape.

Legend: T rows, I input features, N output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segquant.kernels import operators
from segquant.kernels.choice import Choice, Device, Way, choose
from segquant.kernels.encode import Encoded, Producer, Steps, encode
from segquant.kernels.packed import PackedLinear, low_rank_inner


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
    choice = choose(packed, rows=x_TI.shape[0], device=Device.of(x.device))
    if choice.way is Way.triton_small:
        output_TN = _small(x_TI, packed, producer)
    elif packed.plan.integer:
        output_TN = _integer(x_TI, packed, producer, choice)
    else:
        output_TN = _fp8(x_TI, packed, producer, choice)
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


def _integer(x_TI: Tensor, packed: PackedLinear, producer: Producer, choice: Choice) -> Tensor:
    encoded = encode_input(x_TI, packed, producer)
    if packed.down_RI is not None and producer is not Producer.none:
        x_TI = producer.apply(x_TI)
    library = choice.way in (Way.int_mm, Way.simulated)
    if choice.way is Way.simulated:
        return _simulated(encoded, x_TI, packed)
    output_TN: Tensor = operators.coded_product(
        encoded.codes,
        packed.weight,
        encoded.scale_GSPT,
        packed.weight_scale_SN,
        encoded.shift_GST,
        packed.column_sum_SN,
        packed.bias_N,
        low_rank_inner(x_TI, packed),
        packed.up_NR,
        encoded.rows,
        packed.plan.segments,
        packed.plan.planes,
        packed.flat_runs,
        packed.dtype,
        library,
    )
    return output_TN


def _simulated(encoded: Encoded, x_TI: Tensor, packed: PackedLinear) -> Tensor:
    """The same numbers through float32 products, where a device has no integers."""
    from segquant.kernels.integers import chunked_product
    from segquant.kernels.packed import weight_codes
    from segquant.kernels.product import coded_product

    return coded_product(
        encoded.codes,
        weight_codes(packed),
        scale_GSPT=encoded.scale_GSPT,
        weight_scale_SN=packed.weight_scale_SN,
        shift_GST=encoded.shift_GST,
        column_sum_SN=packed.column_sum_SN,
        bias_N=packed.bias_N,
        inner_GTR=low_rank_inner(x_TI, packed),
        up_NR=packed.up_NR,
        rows=encoded.rows,
        segments=packed.plan.segments,
        planes=packed.plan.planes,
        runs=packed.flat_runs,
        dtype=packed.dtype,
        product=chunked_product,
    )


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


def _fp8(x_TI: Tensor, packed: PackedLinear, producer: Producer, choice: Choice) -> Tensor:
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
            choice.way is Way.scaled_mm,
        )
        for group, first, last in packed.runs
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
