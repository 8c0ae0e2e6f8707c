"""The operators that torch.compile and torch.export see: opaque, with shapes known without a run.

They are plain custom operators. A `triton_op` whose CPU side is plain torch breaks torch.compile
on the CPU, where Inductor follows it into the Triton kernel. Nothing here waits for the device.

Legend: T rows, I input features, N output features, G distinct smoothing vectors, S segments of
the input, P planes, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from segquant.kernels.choice import INT8_CAPABILITY, Device, Facts, Way, decide
from segquant.kernels.codes import BYTE, ActivationCode
from segquant.kernels.encode import CodePlan, EncoderTensors, Producer, encode, static_plan
from segquant.kernels.integers import exact_product
from segquant.kernels.layout import unpack_halves
from segquant.kernels.product import CodedProduct
from segquant.kernels.product import coded_product as coded_product_reference
from segquant.kernels.product import fp8_product as fp8_product_reference

# Both coded products begin with a `CodedProduct`, spelled out: `_flat` and `_job` are its way there
# and back. torch wants the whole schema; as one text it stands once.
_JOB = (
    "Tensor codes, Tensor weight, Tensor scale_GSPT, Tensor weight_scale_SN, Tensor? shift_GST, "
    "Tensor? column_sum_SN, Tensor? bias_N, Tensor? inner_GTR, Tensor? up_NR, SymInt rows, "
    "SymInt[] segments, SymInt[] planes, SymInt[] runs"
)
_JOB_FIELDS = tuple(field.name for field in fields(CodedProduct))
_JOB_SIZE = len(_JOB_FIELDS)


def coded_product(job: CodedProduct, *, dtype: torch.dtype) -> Tensor:
    """The output [T, N] of coded inputs; see `product.coded_product`."""
    output_TN: Tensor = coded_product_operator(*_flat(job), dtype)
    return output_TN


def coded_product_codes(
    job: CodedProduct, *, producer: Producer, next_code: ActivationCode, next_inverse_PN: Tensor
) -> Tensor:
    """As `coded_product`, but an activation and the codes of the layer that reads it follow.

    Args:
        producer: the activation.
        next_code: that layer's one code; its steps are static.
        next_inverse_PN: their reciprocals by plane and feature.

    Returns:
        flat int8, as `Encoded.codes`.
    """
    names = (producer.name, next_code.name)
    codes: Tensor = coded_product_codes_operator(*_flat(job), *names, next_inverse_PN)
    return codes


def _flat(job: CodedProduct) -> tuple[Any, ...]:
    """A job as the operators take it; written out, so that torch.compile sees plain attributes."""
    return (
        job.codes,
        job.weight,
        job.scale_GSPT,
        job.weight_scale_SN,
        job.shift_GST,
        job.column_sum_SN,
        job.bias_N,
        job.inner_GTR,
        job.up_NR,
        job.rows,
        job.segments,
        job.planes,
        job.runs,
    )


def _job(flat: tuple[Any, ...]) -> CodedProduct:
    """The job that an operator's arguments begin with."""
    return CodedProduct(**dict(zip(_JOB_FIELDS, flat[:_JOB_SIZE], strict=True)))


@torch.library.custom_op(
    "segquant::coded_product", mutates_args=(), schema=f"({_JOB}, ScalarType dtype) -> Tensor"
)
def coded_product_operator(*flat: Any) -> Tensor:
    job, dtype = _job(flat), flat[_JOB_SIZE]
    way = Way.exact
    if job.codes.device.type != "cpu":
        facts = Facts(
            integer=True,
            four_bit=job.packed,
            small=False,
            segments=tuple(job.segments),
            runs=job.run_sizes,
        )
        way = decide(facts, rows=job.rows, device=Device.of(job.codes.device)).way
    if way in (Way.triton, Way.triton_w4):
        from segquant.kernels import triton_launch as launch

        with torch.cuda.device(job.codes.device):
            return launch.product(job, dtype=dtype)
    if job.packed:
        job = replace(job, weight=unpack_halves(job.weight))
    multiply = _int_mm if way is Way.int_mm else exact_product
    return coded_product_reference(job, dtype=dtype, product=multiply)


@coded_product_operator.register_fake
def _(*flat: Any) -> Tensor:
    job, dtype = _job(flat), flat[_JOB_SIZE]
    return job.codes.new_empty((job.rows, job.out_features), dtype=dtype)


@torch.library.custom_op(
    "segquant::coded_product_codes",
    mutates_args=(),
    schema=f"({_JOB}, str producer, str next_code, Tensor next_inverse_PN) -> Tensor",
)
def coded_product_codes_operator(*flat: Any) -> Tensor:
    job, (producer, next_code, next_inverse_PN) = _job(flat), flat[_JOB_SIZE:]
    if _has_kernels(job.codes.device):
        from segquant.kernels import triton_launch as launch

        with torch.cuda.device(job.codes.device):
            return launch.product(
                job,
                dtype=torch.float32,
                producer=producer,
                next_code=next_code,
                next_inverse_PN=next_inverse_PN.contiguous(),
            )
    value_TN = coded_product(job, dtype=torch.float32)
    plan, tensors = _next_plan(job, next_code, next_inverse_PN)
    return encode(value_TN, plan=plan, tensors=tensors, producer=Producer(producer)).codes.clone()


@coded_product_codes_operator.register_fake
def _(*flat: Any) -> Tensor:
    job, (_, next_code, next_inverse_PN) = _job(flat), flat[_JOB_SIZE:]
    plan, _ = _next_plan(job, next_code, next_inverse_PN)
    return job.codes.new_empty((plan.stored_size(job.rows),), dtype=torch.int8)


def _next_plan(
    job: CodedProduct, next_code: str, next_inverse_PN: Tensor
) -> tuple[CodePlan, EncoderTensors]:
    """The codes of the layer that reads the output."""
    sizes = (job.out_features,)
    return static_plan(next_inverse_PN[None], None, segments=sizes, codes=next_code, num_bits=BYTE)


def _int_mm(x_TK: Tensor, w_NK: Tensor) -> Tensor:
    return torch._int_mm(x_TK.contiguous(), w_NK.contiguous().T)


@torch.library.custom_op("segquant::fp8_product", mutates_args=())
def fp8_product(
    codes_TI: Tensor,
    weight_NI: Tensor,
    scale: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The output [T, N] of e4m3 codes; see `product.fp8_product`."""
    facts = Facts(
        integer=False,
        four_bit=False,
        small=False,
        segments=(weight_NI.shape[1],),
        runs=(weight_NI.shape[0],),
    )
    rows = codes_TI.shape[0]
    if decide(facts, rows=rows, device=Device.of(codes_TI.device)).way is not Way.scaled_mm:
        return fp8_product_reference(
            codes_TI,
            weight_NI,
            scale=scale,
            weight_scale_N=weight_scale_N,
            bias_N=bias_N,
            dtype=dtype,
        )
    # Scales per row inside the product are slow or missing on some devices: one here, ours after.
    unit = torch.ones((), device=codes_TI.device)
    sums = torch._scaled_mm(
        codes_TI.view(torch.float8_e4m3fn),
        weight_NI.view(torch.float8_e4m3fn).T,
        scale_a=unit,
        scale_b=unit,
        out_dtype=torch.float32,
    )
    total = sums * scale.reshape(-1, 1) * weight_scale_N
    return (total if bias_N is None else total + bias_N).to(dtype)


@fp8_product.register_fake
def _(
    codes_TI: Tensor,
    weight_NI: Tensor,
    scale: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return codes_TI.new_empty((codes_TI.shape[0], weight_NI.shape[0]), dtype=dtype)


def _has_kernels(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    known = Device.of(device)
    return known.triton and known.capability >= INT8_CAPABILITY


@torch.library.custom_op("segquant::encode_static", mutates_args=())
def encode_static(
    x_TI: Tensor,
    inverse_GPI: Tensor,
    zero_GI: Tensor | None,
    segments: Sequence[int],
    codes: str,
    num_bits: int,
    producer: str,
) -> Tensor:
    """Codes under static steps, flat, by one kernel on CUDA; see `encode.encode`.

    Args:
        codes: of each segment, with a comma between.
    """
    if _has_kernels(x_TI.device):
        from segquant.kernels import triton_launch as launch

        with torch.cuda.device(x_TI.device):
            return launch.encode(
                x_TI,
                inverse_GPI,
                zero_GI,
                segments=segments,
                codes=codes,
                num_bits=num_bits,
                producer=producer,
            )
    plan, tensors = static_plan(
        inverse_GPI, zero_GI, segments=segments, codes=codes, num_bits=num_bits
    )
    return encode(x_TI, plan=plan, tensors=tensors, producer=Producer(producer)).codes.clone()


@encode_static.register_fake
def _(
    x_TI: Tensor,
    inverse_GPI: Tensor,
    zero_GI: Tensor | None,
    segments: Sequence[int],
    codes: str,
    num_bits: int,
    producer: str,
) -> Tensor:
    plan, _ = static_plan(inverse_GPI, zero_GI, segments=segments, codes=codes, num_bits=num_bits)
    return x_TI.new_empty((plan.stored_size(x_TI.shape[0]),), dtype=torch.int8)


@torch.library.custom_op("segquant::small_product", mutates_args=())
def small_product(
    x_TI: Tensor,
    weight_NI: Tensor,
    inverse_PI: Tensor,
    scale_P: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    producer: str,
    num_bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """Encodes and multiplies a few rows in one kernel on CUDA; symmetric or dual static codes."""
    if _has_kernels(x_TI.device):
        from segquant.kernels import triton_launch as launch

        with torch.cuda.device(x_TI.device):
            return launch.small(
                x_TI,
                weight_NI,
                inverse_PI,
                scale_P,
                weight_scale_N,
                bias_N,
                producer=producer,
                num_bits=num_bits,
                dtype=dtype,
            )
    names = "symmetric" if inverse_PI.shape[0] == 1 else "dual"
    sizes = (x_TI.shape[1],)
    plan, tensors = static_plan(
        inverse_PI[None], None, segments=sizes, codes=names, num_bits=num_bits
    )
    codes = encode(x_TI, plan=plan, tensors=tensors, producer=Producer(producer)).codes
    job = CodedProduct(
        codes=codes,
        weight=weight_NI,
        scale_GSPT=scale_P[None, None, :, None],
        weight_scale_SN=weight_scale_N[None],
        shift_GST=None,
        column_sum_SN=None,
        bias_N=bias_N,
        inner_GTR=None,
        up_NR=None,
        rows=x_TI.shape[0],
        segments=sizes,
        planes=plan.planes,
        runs=(0, 0, weight_NI.shape[0]),
    )
    return coded_product_reference(job, dtype=dtype)


@small_product.register_fake
def _(
    x_TI: Tensor,
    weight_NI: Tensor,
    inverse_PI: Tensor,
    scale_P: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    producer: str,
    num_bits: int,
    dtype: torch.dtype,
) -> Tensor:
    return x_TI.new_empty((x_TI.shape[0], weight_NI.shape[0]), dtype=dtype)
