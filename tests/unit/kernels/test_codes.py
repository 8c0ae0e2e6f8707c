"""Activation codes: reach, rounding, every sign, and how they lie in memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segquant.core.activation import ActivationGrid, fake_quantize, static_scales
from segquant.core.schemes import Granularity, TensorScheme
from segquant.kernels.codes import ActivationCode, code_steps, decode_planes, encode_planes
from segquant.kernels.encode import CodePlan, Producer, Steps, encode
from segquant.kernels.integers import chunked_product, exact_product, int_mm_is_exact
from segquant.kernels.layout import (
    pack_halves,
    split_planes,
    stack_planes,
    stored_rows,
    unpack_halves,
)
from tests.unit.kernels.cases import CODES, generator, inputs, layer

CODE = ActivationCode


def round_trip(x: torch.Tensor, code: CODE) -> torch.Tensor:
    steps = code_steps(x.min(), x.max(), code=code)
    return decode_planes(encode_planes(x, steps.inverse, steps.zero, code=code), steps)


# Half a step of each code for values in [-1, 3].
HALF_STEP = {
    CODE.symmetric: 3 / 127 / 2,
    CODE.zero_point: 4 / 255 / 2,
    CODE.dual: 3 / 127 / 2,
    CODE.dual_wide: 3 / 255 / 2,
    CODE.high_low: 3 / 32639 / 2,
}


@pytest.mark.parametrize("code", CODES)
def test_a_value_is_off_by_half_a_step_at_most(code: CODE) -> None:
    x = torch.rand(500, generator=generator(0)) * 4 - 1
    x[0], x[1] = -1.0, 3.0
    assert (round_trip(x, code) - x).abs().max() <= HALF_STEP[code] * (1 + 1e-4)


def test_dual_is_as_fine_as_each_side_allows() -> None:
    x = torch.tensor([-0.01, -0.0031, 0.0, 1.3, 5.0])
    wrong = (round_trip(x, CODE.dual) - x).abs()
    assert wrong[:2].max() <= 0.01 / 128 / 2 * 1.001
    assert (round_trip(x, CODE.symmetric) - x).abs()[:2].max() > 0.003


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("kind", ["positive", "negative", "zero"])
def test_one_sign_alone(code: CODE, kind: str) -> None:
    x = inputs(kind, 9, 20)
    reach = float(x.abs().max()) or 1.0
    assert (round_trip(x, code) - x).abs().max() <= reach / 127 / 2 * 1.001
    assert round_trip(torch.zeros(3, 4), code).abs().max() == 0


@pytest.mark.parametrize("code", CODES)
def test_extremes_saturate_and_nan_is_zero(code: CODE) -> None:
    steps = code_steps(torch.tensor(-1.0), torch.tensor(2.0), code=code)
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e-39])
    planes = encode_planes(x, steps.inverse, steps.zero, code=code)
    value = decode_planes(planes, steps)
    assert value[0] == 0
    assert value.isfinite().all()
    assert value[1] == value[3] == value.max()
    assert value[2] == value[4] == value.min()
    assert value[5] == 0


@pytest.mark.parametrize("code", CODES)
def test_a_row_with_nan_says_so_under_dynamic_steps(code: CODE) -> None:
    x = inputs("normal", 6, 32)
    packed = layer(x, 8, codes=[code], steps=Steps.token)
    x[2, 5] = float("nan")
    from segquant.kernels import quantized_linear

    y = quantized_linear(x, packed)
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize(
    ("code", "symmetric", "dual"),
    [(CODE.symmetric, True, False), (CODE.dual, True, True), (CODE.zero_point, False, False)],
)
def test_the_codes_are_those_of_the_simulation(code: CODE, symmetric: bool, dual: bool) -> None:
    """But for ties: the simulation divides by the step, the kernels multiply."""
    x = inputs("gelu", 200, 50)
    scheme = TensorScheme(num_bits=8, granularity=Granularity.per_tensor, symmetric=symmetric)
    grid = ActivationGrid(scheme=scheme, blocks=(50,), dual=(dual,))
    static = static_scales(x.amin(0), x.amax(0), grid=grid)
    torch.testing.assert_close(
        round_trip(x, code), fake_quantize(x, grid=grid, static=static), rtol=0, atol=1e-6
    )


@given(rows=st.integers(1, 40), features=st.integers(1, 9), planes=st.integers(1, 2))
def test_stacked_planes_come_apart(rows: int, features: int, planes: int) -> None:
    made = [torch.arange(rows * features).view(rows, features) + 10_000 * p for p in range(planes)]
    stacked = stack_planes(made)
    assert stacked.shape[0] == stored_rows(rows, planes)
    for one, back in zip(made, split_planes(stacked, rows=rows, planes=planes), strict=True):
        assert torch.equal(one, back)


def test_eight_rows_of_each_plane_lie_together() -> None:
    positive, negative = torch.ones(20, 3), -torch.ones(20, 3)
    rows = stack_planes([positive, negative])[:32, 0].tolist()
    assert rows == [1.0] * 8 + [-1.0] * 8 + [1.0] * 8 + [-1.0] * 8


def test_halves_of_bytes() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 2)
    assert torch.equal(unpack_halves(pack_halves(codes)), codes)
    assert pack_halves(codes).shape == (3, 16)


@pytest.mark.parametrize("features", [1, 77, 1024, 1025, 5000])
def test_products_are_exact_at_the_extremes(features: int) -> None:
    """In one float32 product of 5000 extreme codes the sum would no longer be an integer."""
    x = torch.full((3, features), -128, dtype=torch.int8)
    x[1] = torch.randint(-128, 128, (features,), dtype=torch.int8, generator=generator(0))
    w = torch.full((5, features), -128, dtype=torch.int8)
    w[2, ::2], w[3] = 127, x[1]
    exact = x.long() @ w.long().T
    assert torch.equal(exact_product(x, w).long(), exact)
    assert torch.equal(chunked_product(x, w).long(), exact)


def test_a_wrong_int_mm_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI, sums of pairs saturate at 16 bits."""
    right = torch._int_mm

    def saturating(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return right(x, w).clamp(-(2**15), 2**15 - 1)

    int_mm_is_exact.cache_clear()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not int_mm_is_exact()
    x = torch.full((2, 64), -128, dtype=torch.int8)
    assert torch.equal(exact_product(x, x).long(), x.long() @ x.long().T)
    monkeypatch.undo()
    int_mm_is_exact.cache_clear()


def test_sums_too_long_for_int32_are_refused() -> None:
    x = torch.zeros(1, 2**17, dtype=torch.int8)
    with pytest.raises(ValueError, match="int32"):
        exact_product(x, x)


def test_a_plan_counts_its_products() -> None:
    plan = CodePlan(segments=(3072, 12288), codes=(CODE.symmetric, CODE.dual))
    assert plan.products == pytest.approx(1.8)
    assert plan.name() == "int8 symmetric+dual static"


@pytest.mark.parametrize("producer", list(Producer))
def test_a_producer_is_applied_before_the_codes(producer: Producer) -> None:
    x = inputs("normal", 7, 16)
    packed = layer(producer.apply(x), 4, codes=[CODE.dual])
    fused = encode(x, plan=packed.plan, tensors=packed.tensors, producer=producer)
    apart = encode(producer.apply(x), plan=packed.plan, tensors=packed.tensors)
    assert torch.equal(fused.codes, apart.codes)
