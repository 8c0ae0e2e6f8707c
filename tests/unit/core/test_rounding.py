"""GPTQ against the paper in float64, and against what it must not be."""

import pytest
import torch
from torch import Tensor

from segquant.core.grids import int_grid
from segquant.core.rounding import (
    FactorCache,
    GptqSettings,
    gptq,
    gptq_factor,
    inverse_factor,
    lower_inverse,
    segment_gram,
)
from segquant.core.weights import (
    WeightGrid,
    WeightScales,
    dequantize_weight,
    quantize_weight,
    weight_scales,
)
from tests.unit.core.helpers import CHANNEL, GROUP, correlated, generator, scheme


def case(
    *, seed: int = 0, num_bits: int = 4, rows: int = 64, features: int = 48, symmetric: bool = True
) -> tuple[Tensor, Tensor, WeightGrid, WeightScales]:
    x = correlated(1024, features, seed=seed)
    w = torch.randn(rows, features, generator=generator(seed + 100)) / features**0.5
    grid = WeightGrid(
        scheme=scheme(num_bits, CHANNEL, symmetric=symmetric),
        row_blocks=(rows,),
        blocks=(features,),
    )
    return x, w, grid, weight_scales(w, grid=grid)


def run(
    x: Tensor, w: Tensor, grid: WeightGrid, scales: WeightScales, **settings: float | bool
) -> Tensor:
    chosen = GptqSettings(**settings)
    factor = gptq_factor(x.T @ x, settings=chosen)
    found = gptq(w, factor, scales=scales, grid=grid, block_size=chosen.block_size)
    assert found.fallback is None
    return dequantize_weight(found.codes_OI, scales=scales, grid=grid)


def output_error(x: Tensor, w: Tensor, quantized: Tensor) -> float:
    return float(((w - quantized).double() @ x.double().T).square().mean())


def nearest(w: Tensor, grid: WeightGrid, scales: WeightScales) -> Tensor:
    return dequantize_weight(quantize_weight(w, scales=scales, grid=grid), scales=scales, grid=grid)


def plain_gptq(x: Tensor, w: Tensor, step_O: Tensor, *, damping: float, num_bits: int) -> Tensor:
    """Algorithm 1 without blocks, as the paper has it: inverse first, then its Cholesky factor."""
    w, x, step_O = w.double().clone(), x.double(), step_O.double()
    h = 2 * x.T @ x
    h += damping * h.diagonal().mean() * torch.eye(h.shape[0], dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    grid = int_grid(num_bits)
    result = torch.empty_like(w)
    for i in range(w.shape[1]):
        codes = (w[:, i] / step_O).round().clamp(grid.quant_min, grid.quant_max)
        result[:, i] = codes * step_O
        error = (w[:, i] - result[:, i]) / u[i, i]
        w[:, i + 1 :] -= error[:, None] * u[i, i + 1 :]
    return result


def full_inverse_gptq(x: Tensor, w: Tensor, step_O: Tensor, *, num_bits: int) -> Tensor:
    """The wrong version, kept: the authors' code spreads the error by the raw inverse.

    It forgets that the columns before are fixed already, and loses half to all of GPTQ's gain.
    """
    w, x, step_O = w.double().clone(), x.double(), step_O.double()
    h = x.T @ x
    h += 0.01 * h.diagonal().mean() * torch.eye(h.shape[0], dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    grid = int_grid(num_bits)
    result = torch.empty_like(w)
    for i in range(w.shape[1]):
        codes = (w[:, i] / step_O).round().clamp(grid.quant_min, grid.quant_max)
        result[:, i] = codes * step_O
        error = (w[:, i] - result[:, i]) / inverse[i, i]
        w[:, i + 1 :] -= error[:, None] * inverse[i, i + 1 :]
    return result


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("block_size", [1, 16, 128])
def test_against_a_plain_float64_transcription(num_bits: int, block_size: int) -> None:
    x, w, grid, scales = case(num_bits=num_bits)
    found = run(x, w, grid, scales, block_size=block_size)
    exact = plain_gptq(x, w, scales.scale[:, 0], damping=0.01, num_bits=num_bits)
    # Codes on a tie may differ by float32 rounding and then change later columns of that row.
    same = float(((found.double() - exact).abs() < 1e-6).double().mean())
    assert same > 0.995
    assert output_error(x, w, found) == pytest.approx(output_error(x, w, exact), rel=0.02)


@pytest.mark.parametrize("num_bits", [4, 8])
def test_halves_the_error_of_rounding_to_nearest_and_the_raw_inverse_does_not(
    num_bits: int,
) -> None:
    """Correlated inputs: half of RTN's error power or less; the raw inverse far more."""
    right, wrong = [], []
    for seed in range(3):
        x, w, grid, scales = case(seed=seed, num_bits=num_bits, rows=64, features=128)
        base = output_error(x, w, nearest(w, grid, scales))
        right.append(output_error(x, w, run(x, w, grid, scales)) / base)
        full = full_inverse_gptq(x, w, scales.scale[:, 0], num_bits=num_bits)
        wrong.append(output_error(x, w, full) / base)
    assert max(right) < 0.55
    assert min(wrong) > 1.3 * max(right)


def test_independent_inputs_leave_nothing_to_gain() -> None:
    _, w, grid, scales = case()
    x = torch.eye(48) * 3
    assert torch.equal(run(x, w, grid, scales), nearest(w, grid, scales))


@pytest.mark.parametrize("setting", [{"damping": 1.0}, {"act_order": True}])
def test_each_setting_reaches_the_computation(setting: dict[str, float]) -> None:
    x, w, grid, scales = case()
    found, plain = run(x, w, grid, scales, **setting), run(x, w, grid, scales)
    assert not torch.equal(found, plain)
    assert output_error(x, w, found) < output_error(x, w, nearest(w, grid, scales))


@pytest.mark.parametrize("act_order", [True, False])
def test_groups_keep_their_own_scale_in_any_order(act_order: bool) -> None:
    """In the authors' code groups had no effect, and act-order mixed them up."""
    x, w, _, _ = case()
    w = w * torch.tensor([1.0] * 16 + [8.0] * 32)
    grid = WeightGrid(scheme=scheme(4, GROUP, group_size=16), row_blocks=(64,), blocks=(16, 16, 16))
    scales = weight_scales(w, grid=grid)
    found = run(x, w, grid, scales, act_order=act_order)
    codes = found / scales.per_weight(grid).scale
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert output_error(x, w, found) < output_error(x, w, nearest(w, grid, scales))


def test_asymmetric_weights_gain_too() -> None:
    x, w, grid, scales = case(symmetric=False)
    found = run(x, w + 0.1, grid, weight_scales(w + 0.1, grid=grid))
    base = nearest(w + 0.1, grid, weight_scales(w + 0.1, grid=grid))
    assert scales.zero_point is not None
    assert output_error(x, w + 0.1, found) < 0.7 * output_error(x, w + 0.1, base)


def test_a_dead_channel_keeps_its_weights_and_disturbs_nothing() -> None:
    x, w, grid, scales = case()
    x[:, 5] = 0
    found = run(x, w, grid, scales)
    assert bool(found.isfinite().all())
    assert torch.equal(found[:, 5], nearest(w, grid, scales)[:, 5])


def test_dead_inputs_fall_back_to_nearest_and_say_so() -> None:
    _, w, grid, scales = case()
    factor = gptq_factor(torch.zeros(48, 48), settings=GptqSettings())
    found = gptq(w, factor, scales=scales, grid=grid, block_size=128)
    assert found.fallback is not None
    assert torch.equal(found.codes_OI, quantize_weight(w, scales=scales, grid=grid))


def test_a_matrix_that_is_not_positive_is_damped_until_it_is() -> None:
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0]))
    indefinite[0, 1] = indefinite[1, 0] = 1.05
    factor = inverse_factor(indefinite, damping=0.01)
    assert factor is not None
    damp = 0.1
    expected = torch.linalg.inv(indefinite.double() + damp * torch.eye(3))
    torch.testing.assert_close(factor.T @ factor, expected)


def test_the_factor_is_upper_triangular_and_gives_the_inverse() -> None:
    x = correlated(300, 40, seed=1)
    gram = x.T @ x
    factor = inverse_factor(gram, damping=0.01)
    assert factor is not None
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(40)
    torch.testing.assert_close(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-6, atol=1e-9)


def test_triangular_inverse_by_halves() -> None:
    lower = torch.randn(300, 300, dtype=torch.float64, generator=generator(0)).tril() / 30
    lower.diagonal().fill_(1.0)
    eye = torch.eye(300, dtype=torch.float64)
    torch.testing.assert_close(lower_inverse(lower) @ lower, eye, rtol=0, atol=1e-8)


def test_segment_gram_drops_cross_terms_only() -> None:
    gram = torch.arange(1.0, 26.0).reshape(5, 5)
    expected = torch.block_diag(gram[:2, :2], gram[2:, 2:])
    assert torch.equal(segment_gram(gram, (2, 3)), expected)


def test_the_weight_and_the_gram_matrix_are_left_alone() -> None:
    """In the authors' code float32 tensors were scaled in place."""
    x, w, grid, scales = case()
    gram, before_w = x.T @ x, w.clone()
    before = gram.clone()
    gptq(w, gptq_factor(gram, settings=GptqSettings()), scales=scales, grid=grid, block_size=16)
    assert torch.equal(w, before_w)
    assert torch.equal(gram, before)


def test_the_cache_is_for_one_matrix_at_a_time() -> None:
    cache, made = FactorCache(), []

    def make() -> None:
        made.append(1)

    first, second = torch.eye(2), torch.eye(2)
    for gram in (first, first, second, first):
        cache.get(gram, (), make)
    assert len(made) == 3
