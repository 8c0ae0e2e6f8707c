"""The custom operators: registered right, and whole under torch.compile, export and state dicts."""

import io
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from segquant.kernels import ActivationCode, KernelLinear, Steps, operators, pack_dense
from segquant.kernels.encode import Producer, encode
from segquant.kernels.operators import _flat, _job
from segquant.kernels.product import CodedProduct
from tests.unit.kernels.cases import inputs, layer

CODE = ActivationCode


def product_arguments(steps: Steps, code: CODE, **more: Any) -> tuple[Any, ...]:
    x = inputs("gelu", 10, 24)
    packed = layer(x, 12, codes=[code], steps=steps, **more)
    encoded = encode(x, plan=packed.plan, tensors=packed.tensors)
    inner = None if packed.up_NR is None else torch.randn(1, 10, packed.up_NR.shape[1])
    return (*_flat(CodedProduct.of(encoded, packed, inner_GTR=inner)), torch.bfloat16)


@pytest.mark.parametrize(
    ("steps", "code", "more"),
    [
        (Steps.static, CODE.dual, {}),
        (Steps.token, CODE.zero_point, {"bias": False}),
        (Steps.static, CODE.symmetric, {"rank": 3, "weight_bits": 4}),
    ],
)
def test_the_product_passes_the_operator_checks(
    steps: Steps, code: CODE, more: dict[str, Any]
) -> None:
    torch.library.opcheck(operators.coded_product_operator, product_arguments(steps, code, **more))


def test_the_schema_is_the_job_field_by_field() -> None:
    names = [field.name for field in fields(CodedProduct)]
    for operator in (operators.coded_product_operator, operators.coded_product_codes_operator):
        schema = operator._opoverload._schema
        assert [argument.name for argument in schema.arguments][: len(names)] == names
    x = inputs("gelu", 10, 24)
    packed = layer(x, 12, codes=[CODE.dual])
    job = CodedProduct.of(encode(x, plan=packed.plan, tensors=packed.tensors), packed)
    again = _job(_flat(job))
    assert all(getattr(again, name) is getattr(job, name) for name in names)


def test_the_other_operators_pass_the_operator_checks() -> None:
    x = inputs("gelu", 10, 24)
    packed = layer(x, 12, codes=[CODE.dual])
    tensors = packed.tensors
    torch.library.opcheck(
        operators.encode_static, (x, tensors.inverse_GPI, None, [24], "dual", 8, "silu")
    )
    small = (
        x,
        packed.weight,
        tensors.inverse_GPI[0],
        tensors.scale_GSP[0, 0],
        packed.weight_scale_SN[0],
        packed.bias_N,
        "none",
        8,
        torch.float32,
    )
    torch.library.opcheck(operators.small_product, small)
    assert torch.equal(operators.small_product(*small), KernelLinear(packed)(x))
    fp8 = pack_dense(torch.randn(12, 24), code=CODE.fp8, low=x.min(), high=x.max())
    codes = encode(x, plan=fp8.plan, tensors=fp8.tensors)
    scale = codes.scale_GSPT[0, 0, 0]
    given = (codes.codes.view(10, 24), fp8.weight, scale, fp8.weight_scale_SN[0], None)
    torch.library.opcheck(operators.fp8_product, (*given, torch.float32))


def test_the_encoding_operator_gives_the_codes_of_plain_torch() -> None:
    x = inputs("gelu", 13, 24)
    codes = (CODE.symmetric, CODE.zero_point)
    packed = layer(x, 12, codes=codes, segments=(8, 16), output=(5, 7))
    tensors = packed.tensors
    found = operators.encode_static(
        x, tensors.inverse_GPI, tensors.zero_GI, [8, 16], "symmetric,zero_point", 8, "gelu"
    )
    plain = encode(x, plan=packed.plan, tensors=tensors, producer=Producer.gelu)
    assert torch.equal(found, plain.codes)


def network(steps: Steps) -> tuple[nn.Module, torch.Tensor]:
    x = inputs("normal", 11, 24)
    first = layer(x, 32, codes=[CODE.symmetric], steps=steps, output=(12, 20), rank=2)
    hidden = torch.nn.functional.gelu(KernelLinear(first)(x))
    codes = (CODE.symmetric, CODE.dual)
    second = layer(hidden, 6, codes=codes, segments=(12, 20), steps=steps)
    return nn.Sequential(KernelLinear(first), nn.GELU(), KernelLinear(second)), x


@pytest.mark.parametrize("steps", [Steps.static, Steps.token])
def test_compiles_in_one_graph(steps: Steps) -> None:
    torch._dynamo.reset()
    model, x = network(steps)
    exact = model(x)
    if steps is Steps.static:
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(x), exact, rtol=1e-4, atol=1e-4)
    dynamic = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (11, 10, 7, 3):
        torch.testing.assert_close(dynamic(x[:rows]), exact[:rows], rtol=1e-4, atol=1e-4)


def test_exports_and_comes_back() -> None:
    model, x = network(Steps.static)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    back = torch.export.load(buffer).module()
    assert torch.equal(back(x), model(x))
    more = torch.cat([x, x, x])[:29]
    assert torch.equal(back(more), model(more))


def test_a_state_dict_fills_another() -> None:
    model, x = network(Steps.static)
    other, _ = network(Steps.static)
    for value in other.buffers():
        value.zero_()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), model(x))


def test_steps_keep_float32_when_the_module_is_cast() -> None:
    model, x = network(Steps.static)
    before = model(x)
    assert torch.equal(model.to(torch.bfloat16)(x), before)
    meta = model.to("meta")
    assert meta(x.to("meta")).shape == before.shape


def on_fake_cuda(module: nn.Module) -> None:
    for name, value in list(module.named_buffers()):
        setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device="cuda"))


@pytest.mark.parametrize(
    ("code", "steps", "rows", "operator"),
    [
        (CODE.dual, Steps.static, 4, "small_product"),
        (CODE.dual, Steps.static, 64, "coded_product"),
        (CODE.zero_point, Steps.token, 4, "coded_product"),
        (CODE.fp8, Steps.static, 64, "fp8_product"),
    ],
)
def test_a_cuda_layer_is_traced_in_one_graph_without_a_gpu(
    code: CODE, steps: Steps, rows: int, operator: str
) -> None:
    """With tensors that only claim to be on a GPU: what is traced asks nothing of the device."""
    x = inputs("gelu", rows, 32)
    module = KernelLinear(
        pack_dense(torch.ones(16, 32), code=code, steps=steps, low=x.min(), high=x.max())
    )
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with FakeTensorMode():
        on_fake_cuda(module)
        torch._dynamo.reset()
        fake = torch.empty(rows, 32, device="cuda")
        made = torch.compile(module, fullgraph=True, backend=backend)(fake)
        eager = module(fake)
    assert made.shape == eager.shape == (rows, 16)
    assert made.device.type == eager.device.type == "cuda"
    assert [name for name in seen if "segquant" in name] == [f"segquant.{operator}.default"]
