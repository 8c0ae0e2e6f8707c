"""Grids: codes and steps, against the equations in float64 and by property."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segquant.core import activation as act
from segquant.core import grids
from segquant.core.activation import ActivationGrid
from segquant.core.blocks import block_max, block_min, expand_blocks, group_blocks
from segquant.core.schemes import Granularity
from segquant.core.weights import WeightGrid, fake_quantize_weight, weight_scales
from tests.unit.core.helpers import CHANNEL, GROUP, TENSOR, TOKEN, generator, scheme

BITS = st.integers(2, 8)
VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(VALUES, BITS)
def test_symmetric_error_is_half_a_step(values: list[float], num_bits: int) -> None:
    x, grid = torch.tensor(values), grids.int_grid(num_bits)
    scale = grids.symmetric_scale(x.abs().amax(), grid=grid)
    codes = grids.quantize(x, scale=scale, grid=grid)
    assert scale.dtype == torch.float32
    assert bool((codes == codes.round()).all())
    assert codes.min() >= grid.quant_min
    assert codes.max() <= grid.quant_max
    error = (grids.dequantize(codes, scale=scale) - x).abs().max()
    assert error <= 0.5 * scale * 1.0001 or x.abs().max() < grids.SMALLEST_RANGE


@given(VALUES, BITS)
def test_asymmetric_holds_zero_exactly_and_the_rest_to_a_step(
    values: list[float], num_bits: int
) -> None:
    x, grid = torch.tensor(values), grids.int_grid(num_bits)
    scale, zero = grids.asymmetric_scale(x.min(), x.max(), grid=grid)
    codes = grids.quantize(x, scale=scale, zero_point=zero, grid=grid)
    found = grids.dequantize(codes, scale=scale, zero_point=zero)
    nothing = grids.quantize(torch.zeros(1), scale=scale, zero_point=zero, grid=grid)
    assert float(grids.dequantize(nothing, scale=scale, zero_point=zero)) == 0.0
    # Half a step of rounding, half a step by which the rounded zero point moves the range's ends.
    assert (found - x).abs().max() <= scale * 1.001 or (x.max() - x.min()) < 1e-30


@given(VALUES, BITS)
def test_quantizing_twice_changes_nothing(values: list[float], num_bits: int) -> None:
    x = torch.tensor(values)
    grid = ActivationGrid(scheme=scheme(num_bits, TENSOR), blocks=(x.shape[0],), dual=(False,))
    static = act.static_scales(x, x, grid=grid)
    once = act.fake_quantize(x, grid=grid, static=static)
    assert torch.equal(act.fake_quantize(once, grid=grid, static=static), once)


@given(st.integers(0, 10_000), BITS)
def test_dual_scale_is_never_coarser_than_symmetric(seed: int, num_bits: int) -> None:
    """Positive codes are the symmetric grid's own where the largest value is positive."""
    x = torch.nn.functional.silu(2 * torch.randn(64, 16, generator=generator(seed)))
    plain = ActivationGrid(scheme=scheme(num_bits, TENSOR), blocks=(16,), dual=(False,))
    dual = ActivationGrid(scheme=scheme(num_bits, TENSOR), blocks=(16,), dual=(True,))
    low, high = x.amin(0), x.amax(0)
    errors = [
        (act.fake_quantize(x, grid=g, static=act.static_scales(low, high, grid=g)) - x)
        .double()
        .square()
        .sum()
        for g in (plain, dual)
    ]
    assert errors[1] <= errors[0] * (1 + 1e-6)


def test_dual_scale_against_the_equations() -> None:
    x = torch.nn.functional.silu(3 * torch.randn(50, 8, generator=generator(0)))
    grid = ActivationGrid(scheme=scheme(8, TENSOR), blocks=(8,), dual=(True,))
    found = act.fake_quantize(
        x, grid=grid, static=act.static_scales(x.amin(0), x.amax(0), grid=grid)
    )
    wide = x.double()
    below, above = -wide.min() / 128, wide.max() / 127
    exact = torch.where(
        wide < 0,
        (wide / below).round().clamp(-128, 0) * below,
        (wide / above).round().clamp(0, 127) * above,
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-7)


def test_the_step_of_each_sign_is_chosen_exactly_with_its_gradients() -> None:
    edge = [-0.0, 0.0, 1e-45, -1e-45, float("inf"), -float("inf"), float("nan")]
    x = torch.cat([torch.tensor(edge), torch.randn(57, generator=generator(1))]).reshape(8, 8)
    for shape in [(1,), (8, 1), (8, 8)]:
        low, high = (torch.rand(shape, generator=generator(k)).requires_grad_() for k in (2, 3))
        found, plain = grids.by_sign(x, negative=low, positive=high), torch.where(x < 0, low, high)
        assert torch.equal(found, plain)
        known = ~x.isnan()
        for a, b in zip(
            torch.autograd.grad(found[known].square().sum(), [low, high]),
            torch.autograd.grad(plain[known].square().sum(), [low, high]),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3.5, -3.5, 1e38])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [TENSOR, TOKEN])
def test_constant_zero_and_tiny_tensors_are_safe(
    value: float, symmetric: bool, granularity: Granularity
) -> None:
    """In the authors' code a scale of zero or of infinity turned zero rows into NaN."""
    x = torch.full((3, 4), value)
    grid = ActivationGrid(
        scheme=scheme(8, granularity, dynamic=True, symmetric=symmetric), blocks=(4,), dual=(False,)
    )
    found = act.fake_quantize(x, grid=grid, static=None)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, x, rtol=0.005, atol=1e-30)


def test_scales_stay_float32_for_half_inputs() -> None:
    """The authors' float16 scales overflow for a row below 0.0019, and the row is lost."""
    x = torch.full((2, 8), 1e-4, dtype=torch.float16)
    grid = ActivationGrid(scheme=scheme(8, TOKEN, dynamic=True), blocks=(8,), dual=(False,))
    scales = act.dynamic_scales(x, grid=grid)
    assert scales.scale.dtype == torch.float32
    found = act.fake_quantize(x, grid=grid, static=None)
    torch.testing.assert_close(found, x.float(), rtol=1e-3, atol=0)


def test_each_token_and_each_block_has_its_own_step() -> None:
    x = torch.randn(5, 12, generator=generator(1)) * torch.tensor([1.0] * 4 + [100.0] * 8)
    grid = ActivationGrid(scheme=scheme(8, TOKEN, dynamic=True), blocks=(4, 8), dual=(False, False))
    found = act.fake_quantize(x, grid=grid, static=None)
    for row, done in zip(x, found, strict=True):
        for at in (slice(0, 4), slice(4, 12)):
            step = row[at].double().abs().max() / 127
            exact = (row[at].double() / step).round() * step
            torch.testing.assert_close(done[at].double(), exact, rtol=1e-6, atol=1e-9)


def test_dynamic_per_tensor_has_one_step_for_all_rows() -> None:
    x = torch.randn(2, 3, 4, generator=generator(2))
    grid = ActivationGrid(scheme=scheme(8, TENSOR, dynamic=True), blocks=(4,), dual=(False,))
    scale = act.dynamic_scales(x, grid=grid).scale
    assert scale.shape == (1,)
    torch.testing.assert_close(scale[0], x.abs().max() / 127)


@pytest.mark.parametrize(
    ("granularity", "group_size", "shape"),
    [(TENSOR, None, (2, 1)), (CHANNEL, None, (6, 1)), (GROUP, 4, (6, 2))],
)
def test_weight_scales_by_granularity(
    granularity: Granularity, group_size: int | None, shape: tuple[int, int]
) -> None:
    w = torch.randn(6, 8, generator=generator(3))
    blocks = (8,) if group_size is None else group_blocks(8, group_size=group_size)
    grid = WeightGrid(
        scheme=scheme(4, granularity, group_size=group_size), row_blocks=(2, 4), blocks=blocks
    )
    scales = weight_scales(w, grid=grid)
    assert scales.scale.shape == shape
    rows = [(0, 2), (2, 6)] if granularity is TENSOR else [(n, n + 1) for n in range(6)]
    columns = [(0, 4), (4, 8)] if group_size else [(0, 8)]
    exact, wide = torch.empty(6, 8, dtype=torch.float64), w.double()
    for a, b in rows:
        for c, d in columns:
            step = wide[a:b, c:d].abs().max() / 7
            exact[a:b, c:d] = (wide[a:b, c:d] / step).round().clamp(-8, 7) * step
    torch.testing.assert_close(fake_quantize_weight(w, grid=grid).double(), exact)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_blocks_cover_every_feature_once(sizes: list[int]) -> None:
    x = torch.randn(3, sum(sizes), generator=generator(4))
    parts = x.split(sizes, -1)
    assert torch.equal(block_max(x, sizes), torch.stack([p.amax(-1) for p in parts], -1))
    assert torch.equal(block_min(x, sizes), torch.stack([p.amin(-1) for p in parts], -1))
    numbers = torch.arange(len(sizes)).float()
    wide = expand_blocks(numbers, sizes).expand(sum(sizes))
    assert wide.tolist() == [float(n) for n, size in enumerate(sizes) for _ in range(size)]


@given(st.integers(1, 9), st.integers(1, 4))
def test_int4_packing_round_trip(in_features: int, rows: int) -> None:
    codes = torch.randint(-8, 8, (rows, in_features), dtype=torch.int8)
    packed = grids.pack_int4(codes)
    assert packed.shape == (rows, (in_features + 1) // 2)
    assert torch.equal(grids.unpack_int4(packed, in_features=in_features), codes)


def test_a_group_size_that_does_not_divide_says_what_would() -> None:
    with pytest.raises(
        ValueError, match=r"ff: in_features=96 .* group_size=64; use one of \[16, 32"
    ):
        group_blocks(96, group_size=64, layer="ff")
