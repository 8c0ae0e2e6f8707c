"""Weights of products that no plain Linear holds: named as kept, and counted."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.cell.protocol_fields import coverage, stored_bytes
from segquant.core.layer_pass import quantize_layers
from segquant.core.method_interface import QuantizationReport
from segquant.core.other_weights import WeightCount, count_weights, other_weights
from segquant.core.recipe import LayerRecipe
from tests.unit.core.helpers import bits, calibrate

X = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))


class Special(nn.Linear):
    """As bitsandbytes, quanto, GGUF and LoRA in diffusers have them."""


class Packed(nn.Linear):
    """Two codes of 4 bits in a byte."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.weight = nn.Parameter(torch.zeros(64 * 32, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return input


class Awq(nn.Module):
    """No nn.Linear at all: codes are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 64
        self.register_buffer("qweight", torch.zeros(64, 8, dtype=torch.int32))

    def forward(self, input: Tensor) -> Tensor:
        return input


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 64, 64) * 0.1)
        self.scales = nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,edk->btk", x, self.up) * self.scales


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class LoraLayer(nn.Module):
    """As peft has it: plain Linears inside, nothing of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 64
        self.base_layer, self.down = nn.Linear(64, 64), nn.Linear(64, 4, bias=False)
        self.up = nn.Linear(4, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


class Labelled(Tensor):
    """A weight of a tensor subclass, as torchao's."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Labelled":
        return self


def of_tensor_subclass() -> nn.Linear:
    linear = nn.Linear(64, 64)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Labelled))
    return linear


def in_float8() -> nn.Linear:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, linear.weight.to(x.dtype), linear.bias)

    linear = nn.Linear(64, 64)
    linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    linear.forward = Cast().forward  # type: ignore[method-assign]
    return linear


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(64, 64))  # type: ignore[no-any-return]


SUBCLASS, PARAMETER = "a subclass of nn.Linear ({})", "a parameter, no Linear"
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str], int]] = {
    "subclass": (lambda: Special(64, 64), {"other": SUBCLASS.format("Special")}, 4096),
    "packed": (Packed, {"other": SUBCLASS.format("Packed")}, 4096),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
        {"other": SUBCLASS.format("ParametrizedLinear")},
        4096,
    ),
    "weight norm by a hook": (
        old_weight_norm,
        {"other": "its weight is no parameter: it is computed at every call"},
        4096,
    ),
    "tensor subclass": (
        of_tensor_subclass,
        {"other": "its weight is of Labelled, not floats"},
        4096,
    ),
    "float8": (in_float8, {"other": "its weight is of torch.float8_e4m3fn, not floats"}, 4096),
    "codes in a buffer": (Awq, {"other": "a Awq, no nn.Linear"}, 4096),
    "experts": (Experts, {"other.up": PARAMETER}, 3 * 4096),
    "attention": (
        Attention,
        {
            "other.attn.in_proj_weight": PARAMETER,
            "other.attn.out_proj": SUBCLASS.format("NonDynamicallyQuantizableLinear"),
        },
        4 * 4096,
    ),
    "list of parameters": (
        lambda: Mixture(nn.ParameterList([torch.ones(64, 64), torch.ones(64, 64)])),
        {"other.list.0": PARAMETER, "other.list.1": PARAMETER},
        2 * 4096,
    ),
}


class Mixture(nn.Module):
    def __init__(self, parameters: nn.ParameterList) -> None:
        super().__init__()
        self.list = parameters

    def forward(self, x: Tensor) -> Tensor:
        return x @ sum(self.list) / 64


class Denoiser(nn.Module):
    """A plain Linear, something else, and what is never listed: table, kernel, norm."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other = nn.Linear(64, 64), other
        self.table = nn.Embedding(100, 64)
        self.kernel = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 1))
        self.norm = nn.LayerNorm((8, 64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.kernel(self.first(x)) + self.table.weight[:8])
        return self.other(x)  # type: ignore[no-any-return]


def quantized(denoiser: nn.Module) -> tuple[WeightCount, QuantizationReport]:
    before = count_weights(denoiser)
    calibration = calibrate(denoiser, [X], gram=False)
    report = quantize_layers(
        denoiser, calibration=calibration, bits=bits(8, 8), recipe=LayerRecipe()
    )
    return before, report


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_left_alone_is_named_and_counted(case: str) -> None:
    """Such layers stood in no list, and the record said that all Linears were quantized."""
    make, named, weights = CASES[case]
    denoiser = Denoiser(make()).eval()
    if case == "weight norm by a hook":  # its weight is no leaf, which deepcopy refuses
        with torch.no_grad():
            denoiser.other(X)
    before, report = quantized(denoiser)
    assert {entry["name"]: entry["reason"] for entry in report.layers_kept} == named
    assert [entry["name"] for entry in report.layers_quantized] == ["first"]
    said = coverage(before, report)
    assert said["linear_weights_quantized_fraction"] == 4096 / (4096 + weights)
    assert said["linears_kept"] == len(named)


def test_nine_linears_of_ten_left_alone_are_a_tenth() -> None:
    others = nn.Sequential(*[Special(64, 64) for _ in range(9)])
    before, report = quantized(Denoiser(others).eval())
    assert coverage(before, report)["linear_weights_quantized_fraction"] == pytest.approx(0.1)
    assert len(report.layers_kept) == 9
    assert report.effective_bits_per_weight_all > 15


def test_plain_linears_inside_a_wrapper_are_quantized() -> None:
    _, report = quantized(Denoiser(LoraLayer()).eval())
    assert len(report.layers_quantized) == 4
    assert report.layers_kept == []


def test_packed_weights_take_the_bytes_they_take() -> None:
    before, report = quantized(Denoiser(Packed()).eval())
    plain = Denoiser(nn.Identity()).eval()
    alone, its = quantized(plain)
    extra = stored_bytes(before, report) - stored_bytes(alone, its)
    assert extra == 64 * 32 + 64 * 2  # codes, and the bias in 16 bit


def test_a_tied_weight_is_counted_once() -> None:
    first, second = Special(64, 64), Special(64, 64)
    second.weight = first.weight
    found = other_weights(nn.Sequential(first, second))
    assert list(found) == ["0"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_plain_linears_of_any_float_type_are_no_others(dtype: Any) -> None:
    assert other_weights(nn.Sequential(nn.Linear(4, 4)).to(dtype)) == {}
    assert other_weights(nn.Sequential(nn.Linear(4, 4, device="meta"))) == {}
