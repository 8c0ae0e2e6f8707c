"""Activations inside the kernels: the same bits as without, on layers and on whole denoisers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.core.layer_pass import replace_module
from segquant.core.plain_linears import linear_layers
from segquant.kernels import (
    ActivationCode,
    KernelLinear,
    PackedLinear,
    Producer,
    Steps,
    operators,
    pack_dense,
    quantized_linear,
)
from segquant.kernels.encode import encode
from segquant.kernels.fuse import (
    NEXT_CODES,
    FusedFeedForward,
    coded_feed_forward,
    fuse_activations,
    summarize_fused,
    why_not_joined,
)
from segquant.kernels.operators import _flat
from segquant.kernels.product import CodedProduct
from tests import micro
from tests.unit.kernels.cases import inputs, layer

CODE = ActivationCode
FIRST = {
    "plain": {},
    "by token": {"steps": Steps.token},
    "output segments": {"output": (20, 28)},
    "low rank": {"rank": 3},
    "dual, no bias": {"codes": [CODE.dual], "bias": False},
}


def two_layers(code: CODE, *, second: dict[str, Any] | None = None, **more: Any) -> Any:
    x = inputs("normal", 21, 40)
    first = layer(x, 48, **{"codes": [CODE.symmetric], **more})
    hidden = F.gelu(quantized_linear(x, first), approximate="tanh")
    return x, first, layer(hidden, 8, codes=[code], **{"smooth": True, **(second or {})}), hidden


@pytest.mark.parametrize("code", NEXT_CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("more", FIRST.values(), ids=FIRST)
def test_a_joined_feed_forward_has_the_same_bits(code: CODE, more: dict[str, Any]) -> None:
    x, first, second, hidden = two_layers(code, **more)
    found = coded_feed_forward(x.view(3, 7, 40), first, second, producer=Producer.gelu_tanh)
    assert found.shape == (3, 7, 8)
    assert torch.equal(found.view(21, 8), quantized_linear(hidden, second))


def test_in_16_bit_it_saves_a_rounding() -> None:
    """Against float64 of the same integers, fused is no further off than unfused."""
    x, first, second, hidden = two_layers(
        CODE.symmetric, dtype=torch.bfloat16, second={"dtype": torch.bfloat16}
    )
    exact = F.gelu(quantized_linear(x, with_dtype(first, torch.float32)), approximate="tanh")
    wanted = quantized_linear(exact, with_dtype(second, torch.float32))
    fused = coded_feed_forward(x, first, second, producer=Producer.gelu_tanh).float()
    plain = quantized_linear(hidden, second).float()
    assert (fused - wanted).norm() <= (plain - wanted).norm()


def with_dtype(packed: PackedLinear, dtype: torch.dtype) -> PackedLinear:
    from dataclasses import replace

    return replace(packed, dtype=dtype)


@pytest.mark.parametrize(
    ("code", "second", "more", "words"),
    [
        (CODE.zero_point, {}, {}, "writes no int8 zero_point"),
        (CODE.symmetric, {"steps": Steps.token}, {}, "steps by token"),
        (CODE.symmetric, {"rank": 2}, {}, "low-rank"),
        (CODE.symmetric, {"output": (3, 5)}, {}, "smoothing vectors"),
        (CODE.symmetric, {}, {"weight_bits": 4}, "4-bit"),
    ],
    ids=str,
)
def test_what_cannot_be_joined_says_why(
    code: CODE, second: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    x, first, after, _ = two_layers(code, second=second, **more)
    assert words in (why_not_joined(first, after) or "")
    with pytest.raises(ValueError, match=words):
        coded_feed_forward(x, first, after, producer=Producer.gelu)
    assert "features" in (why_not_joined(after, after) or "")


def test_the_operator_passes_the_checks() -> None:
    x, first, second, _ = two_layers(CODE.dual)
    encoded = encode(x, plan=first.plan, tensors=first.tensors)
    assert second.tensors.inverse_GPI is not None
    flat = _flat(CodedProduct.of(encoded, first))
    arguments = (*flat, "gelu", "dual", second.tensors.inverse_GPI[0])
    torch.library.opcheck(operators.coded_product_codes_operator, arguments)


def test_it_compiles_whole_and_exports() -> None:
    x, first, second, hidden = two_layers(CODE.dual)
    module = FusedFeedForward(
        KernelLinear(first), KernelLinear(second), producer=Producer.gelu_tanh
    )
    wanted = quantized_linear(hidden, second)
    compiled = torch.compile(module, fullgraph=True)
    assert torch.equal(compiled(x), wanted)
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: rows},))
    assert torch.equal(program.module()(x), wanted)
    assert program.module()(x[:5]).shape == (5, 8)


class _Seen:
    """Every Linear's ends, for static steps."""

    def __init__(self, model: nn.Module, call: Any) -> None:
        self.ends: dict[str, tuple[Tensor, Tensor]] = {}
        handles = [
            linear.register_forward_pre_hook(
                lambda _, args, name=name: self.ends.update(
                    {name: (args[0].amin(), args[0].amax())}
                )
            )
            for name, linear in linear_layers(model).items()
        ]
        call(model)
        for handle in handles:
            handle.remove()


def on_kernels(model: nn.Module, call: Any, *, code: CODE) -> nn.Module:
    seen, made = _Seen(model, call), copy.deepcopy(model)
    for name, linear in linear_layers(made).items():
        if name not in seen.ends:
            continue
        low, high = seen.ends[name]
        packed = pack_dense(linear.weight, code=code, low=low, high=high, bias=linear.bias)
        replace_module(made, old=linear, new=KernelLinear(packed))
    return made


def step_of(name: str, model: Any) -> Any:
    g = torch.Generator().manual_seed(0)
    config = model.config
    if name == "tiny_mmdit":
        given = {
            "hidden_states": torch.randn(2, 16, 8, 8, generator=g),
            "encoder_hidden_states": torch.randn(2, 5, config.joint_attention_dim, generator=g),
            "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=g),
            "timestep": torch.tensor([500.0, 500.0]),
        }
    else:
        given = {
            "hidden_states": torch.randn(2, 16, 64, generator=g),
            "encoder_hidden_states": torch.randn(2, 5, config.joint_attention_dim, generator=g),
            "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=g),
            "timestep": torch.tensor([0.5, 0.5]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3),
            "guidance": None,
        }

    def call(model: Any) -> Tensor:
        with torch.no_grad():
            return model(**given, return_dict=False)[0]

    return call


@pytest.mark.parametrize("code", [CODE.symmetric, CODE.dual], ids=lambda code: code.name)
@pytest.mark.parametrize("name", ["tiny_mmdit", "tiny_flux"])
def test_a_whole_denoiser_has_the_same_bits(name: str, code: CODE) -> None:
    model = micro.denoiser(name)
    call = step_of(name, model)
    made = on_kernels(model, call, code=code)
    wanted = call(made)
    found = fuse_activations(made)
    assert torch.equal(call(made), wanted)
    joined = [one.layer for one in found if one.where == "product before"]
    taken = [one.layer for one in found if one.where == "codes"]
    assert not any(one.reason for one in found)
    expected = {  # feed-forwards of both streams; the last block of SD3 has no context's
        "tiny_mmdit": [f"transformer_blocks.{n}.ff.net.2" for n in (0, 1)]
        + ["transformer_blocks.0.ff_context.net.2"],
        "tiny_flux": ["transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.2"],
    }
    assert sorted(joined) == sorted(expected[name])
    assert any("norm" in one for one in taken)
    assert any("timestep_embedder" in one for one in taken)
    assert "gelu_tanh in the product before" in summarize_fused(found)
    assert sum(isinstance(m, FusedFeedForward) for m in made.modules()) == len(joined)


def test_a_feed_forward_without_kernels_is_left_and_named() -> None:
    model = micro.denoiser("tiny_mmdit")
    (found, *_) = fuse_activations(model)
    assert found.reason == "a layer beside it has no kernel"
    assert not any(isinstance(m, FusedFeedForward) for m in model.modules())
    assert "not fused" in summarize_fused([found])
    assert summarize_fused([]) == "nothing to fuse"
