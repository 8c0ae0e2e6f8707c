"""Smoothing: the factors, and what the search minimises."""

import pytest
import torch
from torch import Tensor

from segquant.core.layer import quantize_linear
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.segments import LayerShape, whole
from segquant.core.smoothing import (
    SmoothingMode,
    SmoothingSettings,
    smoothing_factors,
)
from tests.unit.core.helpers import bits, correlated, one, power_ratio, seen

SEARCH = SmoothingSettings(mode=SmoothingMode.search)


def recipe(mode: SmoothingMode = SmoothingMode.fixed, **more: float | bool) -> LayerRecipe:
    return LayerRecipe(smoothing=SmoothingSettings(mode=mode, **more))


def test_factors_against_the_equation() -> None:
    x, w = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 0.5, 2.0])
    found = smoothing_factors(x, w, alpha=0.3)
    torch.testing.assert_close(found.double(), x.double() ** 0.3 / w.double() ** 0.7)


def test_dead_channels_are_left_alone_and_factors_are_clamped() -> None:
    """In the authors' code a channel dead in input and weight was 0 / 0."""
    x = torch.tensor([0.0, 0.0, 1.0, 1e9, 1e-9])
    w = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    found = smoothing_factors(x, w, alpha=1.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1e4, 1e4, 1e-4]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_a_channel_dead_on_one_side_reaches_no_further_than_the_others(alpha: float) -> None:
    x, w = torch.tensor([200.0, 1.0, 2.0, 0.0]), torch.tensor([0.0, 0.1, 0.3, 50.0])
    s = smoothing_factors(x, w, alpha=alpha)
    assert float((x / s)[0]) <= float((x / s)[1:3].amin()) * 1.0001
    assert float((w * s)[3]) <= float((w * s)[1:3].amax()) * 1.0001
    assert float(s[3]) <= 1  # should it come alive, it is not blown up more than that asks for
    alone = smoothing_factors(x[1:3], w[1:3], alpha=alpha)
    assert torch.equal(s[1:3], alone)
    for dead in (torch.zeros(4), w):
        assert torch.equal(smoothing_factors(torch.zeros(4), dead, alpha=alpha), torch.ones(4))
        assert torch.equal(smoothing_factors(dead, torch.zeros(4), alpha=alpha), torch.ones(4))


FIXED, FOUND = SmoothingMode.fixed, SmoothingMode.search


@pytest.mark.parametrize("mode", [FIXED, FOUND], ids=lambda m: m.name)
@pytest.mark.parametrize("rounding", list(Rounding), ids=lambda r: r.name)
@pytest.mark.parametrize("fine", [True, False], ids=["fine", "tensor"])
def test_dead_channels_cost_nothing(mode: SmoothingMode, rounding: Rounding, fine: bool) -> None:
    """An input channel without weights kept its outliers: 200 times the error and more."""
    rows, weight = correlated(256, 64, seed=0), correlated(32, 64, seed=1) * 0.1
    how = LayerRecipe(smoothing=SmoothingSettings(mode=mode), rounding=rounding)

    def error(*, of_input: float, of_weight: float) -> float:
        model, x = one(64, 32, bias=False), rows.clone()
        model.linear.weight.data = weight.clone()
        x[:, 7] *= of_input
        model.linear.weight.data[:, 7] *= of_weight
        quant, _ = quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x),
            shape=whole(in_features=64, out_features=32),
            bits=bits(8, 8, fine=fine),
            recipe=how,
        )
        return power_ratio(quant(x), model(x))

    usual = error(of_input=1.0, of_weight=0.0)
    assert error(of_input=200.0, of_weight=0.0) < 1.5 * usual
    if not fine:  # a row of weights has one scale, whatever its largest weight meets
        assert error(of_input=0.0, of_weight=200.0) < 1.5 * error(of_input=0.0, of_weight=1.0)


@pytest.mark.parametrize("dead", ["weights", "inputs"])
@pytest.mark.parametrize("mode", list(SmoothingMode), ids=lambda m: m.name)
@pytest.mark.parametrize("rounding", list(Rounding), ids=lambda r: r.name)
def test_a_layer_that_is_dead_altogether_gives_its_bias(
    dead: str, mode: SmoothingMode, rounding: Rounding
) -> None:
    model, x = one(16, 8), torch.randn(32, 16)
    if dead == "weights":
        torch.nn.init.zeros_(model.linear.weight)
    else:
        x.zero_()
    quant, entry = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=16, out_features=8),
        bits=bits(4, 8, fine=True),
        recipe=LayerRecipe(smoothing=SmoothingSettings(mode=mode), rounding=rounding),
    )
    assert torch.equal(quant(x), model.linear.bias.expand(32, 8))
    assert entry.relative_error == 0


def test_the_grid_has_both_ends_and_no_smoothing() -> None:
    """The authors' code never tries the last alpha, and crashes on a grid of one."""
    tenths = tuple(round(n / 10, 10) for n in range(11))
    assert SEARCH.candidates() == (None, *tenths)
    single = SmoothingSettings(mode=SmoothingMode.search, alpha_min=0.5, alpha_max=0.5)
    assert single.candidates() == (None, 0.5)
    with pytest.raises(ValueError, match=r"alpha=1\.5; give a number"):
        SmoothingSettings(alpha=1.5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_alone_leaves_the_output_unchanged(alpha: float) -> None:
    """8-bit weights chosen so that the grid holds them exactly, activations in 16 bit."""
    model, x = one(16, 8), correlated(64, 16, seed=1, spread=1.0)
    quant, _ = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=16, out_features=8),
        bits=bits(8, 16),
        recipe=recipe(alpha=alpha),
    )
    assert quant.smoothing is not None
    quant._dense_OI = model.linear.weight.detach() * quant.smoothing[0]
    torch.testing.assert_close(quant(x), model(x), rtol=1e-5, atol=1e-5)


def layer_error(x_TI: Tensor, w_OI: Tensor, alpha: float | None, *, activation_bits: int) -> float:
    """Mean squared error of the layer's output, per-tensor static, written out in float64."""
    x, w = x_TI.double(), w_OI.double()
    s = torch.ones(x.shape[1], dtype=torch.float64)
    if alpha is not None:
        s = x.abs().amax(0) ** alpha / w.abs().amax(0) ** (1 - alpha)
    xs, ws = x / s, w * s
    step_x = xs.abs().max() / (2 ** (activation_bits - 1) - 1)
    step_w = ws.abs().max() / 127
    xq, wq = (xs / step_x).round() * step_x, (ws / step_w).round() * step_w
    return float((x @ w.T - xq @ wq.T).square().mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("activation_bits", [8, 4])
def test_the_search_finds_what_an_exhaustive_float64_search_finds(
    seed: int, activation_bits: int
) -> None:
    model, x = one(24, 16, seed=seed), correlated(200, 24, seed=seed, spread=1.5)
    _, entry = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=24, out_features=16),
        bits=bits(8, activation_bits),
        recipe=LayerRecipe(smoothing=SEARCH),
    )
    errors = {
        alpha: layer_error(x, model.linear.weight, alpha, activation_bits=activation_bits)
        for alpha in SEARCH.candidates()
    }
    (chosen,) = entry.alphas[0]
    assert errors[chosen] <= min(errors.values()) * 1.001


def test_a_sample_of_rows_chooses_nearly_as_well_as_all_rows() -> None:
    """Within 2 % of the best true error, by 256 of 4096 rows."""
    model, x = one(48, 32), correlated(4096, 48, seed=5, spread=1.0)
    for use_gram in (False, True):
        _, entry = quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x, rows=256),
            shape=whole(in_features=48, out_features=32),
            bits=bits(8, 8),
            recipe=recipe(SmoothingMode.search, use_gram=use_gram),
        )
        errors = {
            a: layer_error(x, model.linear.weight, a, activation_bits=8)
            for a in (SEARCH.candidates())
        }
        (chosen,) = entry.alphas[0]
        assert errors[chosen] <= min(errors.values()) * 1.02


def test_no_smoothing_wins_where_smoothing_hurts() -> None:
    torch.manual_seed(0)
    model, x = one(16, 16), torch.randn(256, 16).clamp(-1, 1)
    model.linear.weight.data = torch.sign(torch.randn(16, 16)) * torch.rand(16, 16)
    _, entry = quantize_linear(
        model.linear,
        name="linear",
        seen=seen(x),
        shape=whole(in_features=16, out_features=16),
        bits=bits(),
        recipe=recipe(SmoothingMode.search, alpha_min=1.0, alpha_max=1.0),
    )
    plain = layer_error(x, model.linear.weight, None, activation_bits=8)
    smoothed = layer_error(x, model.linear.weight, 1.0, activation_bits=8)
    assert entry.alphas == [[None if plain <= smoothed else 1.0]]


def test_alphas_of_segments_lower_the_whole_layers_error() -> None:
    """Input segments add up in one output, by which alphas are judged, in float32."""
    x = correlated(300, 24, seed=3, spread=1.2) * torch.tensor([1.0] * 8 + [30.0] * 16)
    model = one(24, 12)
    common, apart = (
        quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x),
            shape=LayerShape(output=(12,), input=(8, 16), one_sided=(False, False)),
            bits=bits(4, 4),
            recipe=some,
        )[1]
        for some in (recipe(alpha=0.5), LayerRecipe(smoothing=SEARCH))
    )
    assert len(apart.alphas[0]) == 2
    assert apart.relative_error < common.relative_error


def test_tiny_inputs_are_searched_too() -> None:
    """In the authors' code squared errors below float16's smallest number all came out as 0."""
    model, x = one(24, 16), correlated(200, 24, seed=1, spread=1.5)
    chosen = [
        quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x * factor),
            shape=whole(in_features=24, out_features=16),
            bits=bits(8, 4),
            recipe=recipe(SmoothingMode.search, include_none=False),
        )[1].alphas
        for factor in (1.0, 1e-6)
    ]
    # The clamp of the factors may move a neighbour, the search itself must not degenerate.
    assert abs(float(chosen[0][0][0] or 0) - float(chosen[1][0][0] or 0)) <= 0.2
