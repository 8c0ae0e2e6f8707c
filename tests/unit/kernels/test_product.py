"""The product of codes: exact integers and every layout, against float64 and the float layer."""

from dataclasses import replace

import pytest
import torch

from segquant.kernels import ActivationCode, PackedLinear, Steps, pack_dense, quantized_linear
from segquant.kernels.encode import encode
from segquant.kernels.packed import weight_codes
from segquant.kernels.product import CodedProduct, coded_product
from tests.unit.kernels.cases import CODES, SHAPES, exact_output, generator, inputs, layer

CODE = ActivationCode


def reference(x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
    """The plain-torch product with int64 sums."""
    from segquant.kernels.packed import low_rank_inner

    encoded = encode(x, plan=packed.plan, tensors=packed.tensors)
    job = CodedProduct.of(encoded, packed, inner_GTR=low_rank_inner(x, packed))
    return coded_product(
        replace(job, weight=weight_codes(packed)),
        dtype=packed.dtype,
        product=lambda x, w: (x.long() @ w.long().T).to(torch.int32),
    )


def check(x: torch.Tensor, packed: PackedLinear) -> None:
    found = quantized_linear(x, packed)
    assert torch.equal(found, reference(x, packed))
    exact = exact_output(x, packed)
    scale = exact.abs().max().clamp(min=1e-30)
    assert (found.double() - exact).abs().max() / scale < 2e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("steps", list(Steps))
@pytest.mark.parametrize("code", CODES)
def test_every_code_on_odd_shapes(code: CODE, steps: Steps, shape: tuple[int, int, int]) -> None:
    rows, out, features = shape
    x = inputs("gelu", rows, features)
    check(x, layer(x, out, codes=[code], steps=steps))


@pytest.mark.parametrize("kind", ["positive", "negative", "extreme", "zero"])
@pytest.mark.parametrize("code", CODES)
def test_every_sign(code: CODE, kind: str) -> None:
    x = inputs(kind, 11, 40)
    for steps in (Steps.static, Steps.token):
        check(x, layer(x, 9, codes=[code], steps=steps))


@pytest.mark.parametrize("steps", [Steps.static, Steps.token])
def test_unequal_segments_of_input_and_output(steps: Steps) -> None:
    """DualScale on the last interval alone, as in FLUX's proj_out; the authors' code refuses it."""
    x = torch.cat([inputs("normal", 21, 24), inputs("gelu", 21, 40, seed=1)], 1)
    codes = [CODE.symmetric, CODE.dual]
    check(x, layer(x, 30, codes=codes, segments=(24, 40), steps=steps, output=(7, 23)))
    codes = [CODE.high_low, CODE.symmetric, CODE.zero_point]
    check(x, layer(x, 30, codes=codes, segments=(10, 14, 40), steps=steps, smooth=True))


@pytest.mark.parametrize("smooth", [False, True])
def test_low_rank_branch(smooth: bool) -> None:
    x = inputs("normal", 21, 24)
    check(x, layer(x, 30, codes=[CODE.dual], rank=5, smooth=smooth))
    check(x, layer(x, 30, codes=[CODE.symmetric], rank=5, output=(10, 20)))


def test_four_bit_weights_share_bytes() -> None:
    x = inputs("gelu", 21, 24)
    packed = layer(x, 30, codes=[CODE.dual], weight_bits=4)
    assert packed.packed
    check(x, packed)
    odd = layer(inputs("gelu", 4, 25), 30, codes=[CODE.dual], weight_bits=4)
    assert not odd.packed
    check(inputs("gelu", 4, 25), odd)


@pytest.mark.parametrize("code", list(ActivationCode))
def test_a_layer_comes_near_its_float_self(code: CODE) -> None:
    """And the nearer the finer its code: the order of the synthetic study."""
    w = torch.randn(40, 256, generator=generator(1)) / 16
    x, bias = inputs("gelu", 64, 256), torch.randn(40, generator=generator(2))
    packed = pack_dense(w, code=code, low=x.min(), high=x.max(), bias=bias)
    wrong = quantized_linear(x, packed) - bias - x @ w.T
    error = float(wrong.norm() / (x @ w.T).norm())
    limit = {CODE.fp8: 0.05, CODE.symmetric: 0.03, CODE.high_low: 0.01}.get(code, 0.025)
    assert error < limit
    assert quantized_linear(x.to(torch.bfloat16), packed).dtype is torch.float32


def test_rows_do_not_depend_on_their_company() -> None:
    x = inputs("gelu", 30, 48)
    packed = layer(x, 20, codes=[CODE.dual])
    whole = quantized_linear(x, packed)
    assert torch.equal(torch.cat([quantized_linear(row[None], packed) for row in x]), whole)
    assert quantized_linear(x[:0], packed).shape == (0, 20)
    assert torch.equal(quantized_linear(x.view(5, 6, 48), packed), whole.view(5, 6, 20))


def test_a_wrong_input_is_refused() -> None:
    x = inputs("normal", 3, 16)
    with pytest.raises(ValueError, match="17 features for a layer of 16"):
        quantized_linear(inputs("normal", 3, 17), layer(x, 4, codes=[CODE.symmetric]))
