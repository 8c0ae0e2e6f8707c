"""The choice of a code by error and cost, and the synthetic facts that the study puts to test."""

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional as F

from segquant.kernels import ActivationCode, pack_dense, quantized_linear
from segquant.kernels.auto import INTEGER_CODES, TOLERANCE, Coding, choose_coding, code_errors
from segquant.kernels.encode import Steps
from tests.unit.kernels.cases import generator

CODE = ActivationCode


def gelu(mean: float, spread: float) -> torch.Tensor:
    """GELU of features whose means are drawn around `mean`, as in a feed-forward."""
    g = generator(0)
    means = mean + spread * torch.randn(512, generator=g)
    return F.gelu(torch.randn(256, 512, generator=g) + means)


def errors(x: torch.Tensor, steps: Steps = Steps.static) -> dict[CODE, float]:
    w = torch.randn(128, 512, generator=generator(1))
    codings = [Coding(code=code, steps=steps) for code in CODE]
    found = code_errors(x, w, codings, low=x.min(), high=x.max())
    return {one.coding.code: one.error for one in found}


def test_at_equal_products_the_split_is_far_finer_than_dual_scale() -> None:
    for mean, spread in ((0.0, 0.0), (-1.0, 1.0), (-2.0, 1.0)):
        found = errors(gelu(mean, spread))
        assert found[CODE.dual] / found[CODE.high_low] > 40
        assert found[CODE.dual_wide] < found[CODE.dual]


def test_one_shifted_product_is_as_good_where_a_quarter_is_positive() -> None:
    half, few = errors(gelu(0.0, 0.0)), errors(gelu(-2.0, 0.1))
    assert half[CODE.zero_point] < half[CODE.dual]
    assert few[CODE.dual] < few[CODE.zero_point]


def test_the_cheapest_code_within_the_tolerance_is_chosen() -> None:
    by_code = errors(gelu(0.0, 0.0))

    def chosen(codes: Sequence[CODE], tolerance: float) -> CODE:
        codings = [Coding(code=code) for code in codes]
        return choose_coding(codings, [by_code[code] for code in codes], tolerance=tolerance).code

    assert chosen(INTEGER_CODES, TOLERANCE) is CODE.zero_point
    assert chosen(INTEGER_CODES, 0.001) is CODE.high_low
    assert chosen(INTEGER_CODES, 0.5) is CODE.zero_point
    assert chosen((CODE.dual, CODE.symmetric), 0.0) is CODE.dual


@pytest.mark.parametrize("steps", list(Steps))
def test_the_error_is_that_of_the_layer(steps: Steps) -> None:
    """With weights that 8 bits hold exactly, the layer's own output has it."""
    w = torch.randint(-127, 128, (16, 512), generator=generator(2)).float()
    w[:, 0] = 127.0
    x = gelu(-1.0, 1.0)
    ends = {"low": x.min(), "high": x.max()}
    packed = pack_dense(w, code=CODE.dual, steps=steps, **ends)
    exact = x.double() @ w.double().T
    layer = float((quantized_linear(x, packed).double() - exact).norm() / exact.norm())
    (found,) = code_errors(x, w, [Coding(code=CODE.dual, steps=steps)], **ends)
    assert found.error == pytest.approx(layer, rel=2e-3)
