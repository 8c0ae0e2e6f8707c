"""Ranges: percentile by sorting, least error by exhaustion, and that both reach the layer."""

import pytest
import torch

from segquant.core import activation as act
from segquant.core.activation import ActivationGrid
from segquant.core.layer import quantize_linear
from segquant.core.ranges import SHRINK_STEP, SHRINK_TRIES, RangeRule, tails
from segquant.core.recipe import LayerRecipe
from segquant.core.schemes import Bits, Granularity, TensorScheme
from segquant.core.segments import LayerShape, whole
from segquant.core.weights import WeightGrid, fake_quantize_weight, weight_scales
from tests.unit.core.helpers import CHANNEL, GROUP, TENSOR, correlated, generator, one, scheme, seen


def test_tails_are_nearest_ranks() -> None:
    values = torch.arange(1.0, 1001.0)[torch.randperm(1000, generator=generator(0))]
    assert [float(v) for v in tails(values, percentile=99.0)] == [11.0, 990.0]
    assert [float(v) for v in tails(values, percentile=100.0)] == [1.0, 1000.0]
    assert [float(v) for v in tails(torch.tensor([3.0]), percentile=90.0)] == [3.0, 3.0]


@pytest.mark.parametrize(
    ("granularity", "group_size", "blocks"),
    [(TENSOR, None, (3, 13)), (CHANNEL, None, (16,)), (GROUP, 4, (4, 4, 4, 4))],
)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", [RangeRule.percentile, RangeRule.mse])
def test_weights_of_each_scale_by_hand(
    granularity: Granularity,
    group_size: int | None,
    blocks: tuple[int, ...],
    symmetric: bool,
    rule: RangeRule,
) -> None:
    w = torch.randn(6, 16, generator=generator(1)) ** 3
    how = scheme(
        4,
        granularity,
        group_size=group_size,
        symmetric=symmetric,
        range_rule=rule,
        range_percentile=90.0,
    )
    found = weight_scales(w, grid=WeightGrid(scheme=how, row_blocks=(2, 4), blocks=blocks)).scale
    rows = (2, 4) if granularity is TENSOR else (1,) * 6
    plain = scheme(4, CHANNEL, symmetric=symmetric)
    for r, part in enumerate(w.split(rows)):
        for n, values in enumerate(part.split(blocks, 1)):
            flat = values.reshape(1, -1)
            grid = WeightGrid(scheme=plain, row_blocks=(1,), blocks=(flat.shape[1],))
            if rule is RangeRule.percentile:
                low, high = tails(flat[0], percentile=90.0)
                expected = weight_scales(torch.stack([low, high])[None], grid=_wide(plain)).scale
            else:
                expected = _best(flat, grid)
            torch.testing.assert_close(found[r, n], expected[0, 0])


def _wide(plain: TensorScheme) -> WeightGrid:
    return WeightGrid(scheme=plain, row_blocks=(1,), blocks=(2,))


def _best(flat: torch.Tensor, grid: WeightGrid) -> torch.Tensor:
    """The step of least error among all that are tried, one after the other."""
    best, chosen = float("inf"), torch.empty(0)
    for n in range(SHRINK_TRIES):
        shrink = 1 - SHRINK_STEP * n
        ends = torch.stack([flat.min(), flat.max()])[None] * shrink
        scales = weight_scales(ends, grid=_wide(grid.scheme))
        steps = (flat / scales.scale).round()
        zero = 0 if scales.zero_point is None else scales.zero_point
        codes = (steps + zero).clamp(-8, 7)
        error = float(((codes - zero) * scales.scale - flat).square().sum())
        if error < best * (1 - 1e-6):
            best, chosen = error, scales.scale
    return chosen


@pytest.mark.parametrize("dual", [False, True])
def test_static_activations_with_an_outlier(dual: bool) -> None:
    x = torch.randn(400, 12, generator=generator(2))
    x[0, 0], x[1, 9] = 40.0, -30.0
    errors = {}
    for rule in RangeRule:
        how = TensorScheme(num_bits=4, range_rule=rule, range_percentile=99.5)
        grid = ActivationGrid(scheme=how, blocks=(4, 8), dual=(False, dual))
        static = act.static_scales(x.amin(0), x.amax(0), grid=grid, sample_TI=x)
        errors[rule] = float((act.fake_quantize(x, grid=grid, static=static) - x).square().sum())
        if rule is RangeRule.percentile:
            low, high = tails(x[:, :4].reshape(-1), percentile=99.5)
            torch.testing.assert_close(static.scale[0], torch.maximum(-low, high) / 7)
    assert errors[RangeRule.mse] < errors[RangeRule.amax]
    assert errors[RangeRule.mse] <= errors[RangeRule.percentile]


def test_zero_and_constant_tensors_are_safe() -> None:
    for value in (0.0, 2.5):
        for rule in RangeRule:
            how = scheme(4, CHANNEL, range_rule=rule)
            w = torch.full((2, 8), value)
            found = fake_quantize_weight(
                w, grid=WeightGrid(scheme=how, row_blocks=(2,), blocks=(8,))
            )
            torch.testing.assert_close(found, w)


@pytest.mark.parametrize("cut", [False, True])
def test_rules_reach_the_layer_and_the_report(cut: bool) -> None:
    model, x = one(32, 16), correlated(256, 32, seed=3, spread=0.5)
    shape = LayerShape(output=(4, 12), input=(8, 24), one_sided=(False, False))
    outputs = []
    for rule in RangeRule:
        how = TensorScheme(num_bits=4, range_rule=rule, range_percentile=99.0)
        quant, entry = quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x),
            shape=shape if cut else whole(in_features=32, out_features=16),
            bits=Bits(name="r", weight=how, activation=how),
            recipe=LayerRecipe(),
        )
        outputs.append(quant(x))
        assert entry.weight.endswith(
            {"amax": "static", "mse": "mse", "percentile": "percentile 99"}[rule.name]
        )
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="dynamic=true; such scales reach"):
        TensorScheme(num_bits=8, dynamic=True, range_rule=RangeRule.mse)
    with pytest.raises(ValueError, match="range_percentile=12; give one in"):
        TensorScheme(num_bits=8, range_percentile=12)
