"""Switches that replay the released code, moved boundaries, and the low rank's budget."""

import pytest
import torch

from segquant.core.cuts import Boundaries, moved_boundaries
from segquant.core.layer import quantize_linear
from segquant.core.lowrank import LowRankBudget, LowRankSettings, truncated_svd
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import GptqSettings, GptqVariant, Rounding, gptq_factor
from segquant.core.segments import LayerShape
from segquant.core.smoothing import AlphaGrid, SmoothingMode, SmoothingSettings
from segquant.method import SegQuant
from tests.unit.core.helpers import bits, calibrate, correlated, generator, info, one, seen

SHAPE = LayerShape(output=(8, 16), input=(10, 20, 34), one_sided=(True, True, False))


def test_released_gptq_uses_the_raw_inverse() -> None:
    gram = correlated(256, 24, seed=0).T @ correlated(256, 24, seed=0)
    factor = gptq_factor(gram, settings=GptqSettings(variant=GptqVariant.released))
    assert factor is not None
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(24)
    expected = torch.linalg.inv(damped).float()
    torch.testing.assert_close(factor.factor_II, expected, rtol=1e-4, atol=1e-7)


def test_the_released_alpha_grid_misses_its_last_value() -> None:
    search = SmoothingMode.search
    released = SmoothingSettings(mode=search, alpha_grid=AlphaGrid.released).candidates()
    assert released == tuple(n / 10 for n in range(10))
    assert SmoothingSettings(mode=search).candidates() == (None, *released, 1.0)
    with pytest.raises(ValueError, match="there is only one"):
        SmoothingSettings(mode=search, alpha_grid=AlphaGrid.released, alpha_min=1.0)


def test_a_rank_per_segment_is_one_svd_each_and_is_counted_so() -> None:
    """In the authors' code a rank as wide as a segment makes a whole copy in 16 bit."""
    model, x = one(64, 24), correlated(128, 64, seed=1)
    entries, quants = {}, {}
    for budget in LowRankBudget:
        quants[budget], entries[budget] = quantize_linear(
            model.linear,
            name="linear",
            seen=seen(x),
            shape=SHAPE,
            bits=bits(4, 16),
            recipe=LayerRecipe(low_rank=LowRankSettings(rank=3, budget=budget)),
        )
    assert entries[LowRankBudget.iso].low_rank_parameters == [3 * 64, 3 * 24]
    found = entries[LowRankBudget.per_segment]
    assert found.low_rank_parameters == [2 * 3 * 64, 3 * 3 * 24]
    quant = quants[LowRankBudget.per_segment]
    assert quant.low_rank_up is not None
    assert quant.low_rank_down is not None
    assert int(quant.low_rank_down.count_nonzero()) == 2 * 3 * 64
    product = quant.low_rank_up.float() @ quant.low_rank_down.float()
    part = truncated_svd(model.linear.weight[8:, 10:30].detach(), rank=3, dtype=torch.float16)
    torch.testing.assert_close(product[8:, 10:30], part.product(), rtol=1e-3, atol=1e-4)
    # Each block of the layer's own branch has that rank at most, so that it cannot be nearer.
    w, iso = model.linear.weight, truncated_svd(model.linear.weight, rank=3, dtype=torch.float16)
    assert float((w - product).norm()) < float((w - iso.product()).norm())


def test_the_random_sketch_finds_what_the_exact_svd_does(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(160, 200, generator=generator(0)) @ torch.diag(torch.logspace(0, -2, 200))
    exact = truncated_svd(w, rank=8, dtype=torch.float32).product()
    monkeypatch.setattr("segquant.core.lowrank.SMALLEST_RANDOMIZED", 100)
    found = truncated_svd(w, rank=8, dtype=torch.float32)
    assert float((w - found.product()).norm()) <= 1.001 * float((w - exact).norm())
    assert torch.equal(truncated_svd(w, rank=8, dtype=torch.float32).up_OR, found.up_OR)


@pytest.mark.parametrize("boundaries", [Boundaries.random, Boundaries.mismatched])
def test_moved_boundaries_are_as_many_elsewhere(boundaries: Boundaries) -> None:
    moved = moved_boundaries(SHAPE, boundaries=boundaries, seed=1, layer="a")
    for new, old in ((moved.output, SHAPE.output), (moved.input, SHAPE.input)):
        assert len(new) == len(old)
        assert sum(new) == sum(old)
        assert min(new) > 0
        assert new != old
    assert moved == moved_boundaries(SHAPE, boundaries=boundaries, seed=1, layer="a")
    covered = [SHAPE.one_sided[0]] * 10 + [True] * 20 + [False] * 34
    at = 0
    for size, flag in zip(moved.input, moved.one_sided, strict=True):
        assert flag == all(covered[at : at + size])
        at += size


def test_random_boundaries_follow_seed_and_name_and_the_graphs_stay() -> None:
    def random(seed: int, layer: str) -> LayerShape:
        return moved_boundaries(SHAPE, boundaries=Boundaries.random, seed=seed, layer=layer)

    assert len({random(1, "a").input, random(2, "a").input, random(1, "b").input}) == 3
    same = moved_boundaries(SHAPE, boundaries=Boundaries.graph, seed=1, layer="a")
    assert same is SHAPE
    none = moved_boundaries(SHAPE, boundaries=Boundaries.none, seed=1, layer="a")
    assert none == SHAPE.uncut()


def test_boundaries_reach_the_method_and_the_true_ones_are_best_where_segments_differ() -> None:
    x = torch.cat([torch.randn(256, 16), 50 * torch.randn(256, 48)], 1)
    errors = {}
    for boundaries in Boundaries:
        model = one(64, 24)
        graph = {"linear": info(24, 64, inputs=((16, False), (48, False)))}
        method = SegQuant(smoothing=SmoothingMode.none, boundaries=boundaries)
        model.linear.weight.data[:, 16:] /= 50
        report = method.quantize(
            model, calibration=calibrate(model, [x], graph=graph), bits=bits(8, 4)
        )
        errors[boundaries] = report.layers_quantized[0]["relative_error"]
        told = [line for line in report.elements if line.startswith("experiment boundaries=")]
        assert bool(told) == (boundaries is not Boundaries.graph)
    assert errors[Boundaries.graph] < 0.8 * min(
        error for which, error in errors.items() if which is not Boundaries.graph
    )


def test_switches_are_off_and_are_told_when_on() -> None:
    def switches(method: SegQuant) -> list[str]:
        said = (str(line) for line in method._elements(bits(8, 8)))
        return [line for line in said if line.startswith("switch ")]

    assert not switches(SegQuant())
    on = SegQuant(
        rounding=Rounding.gptq,
        gptq_variant=GptqVariant.released,
        alpha_grid=AlphaGrid.released,
        low_rank_budget=LowRankBudget.per_segment,
        rank=2,
    )
    assert len(switches(on)) == 3
