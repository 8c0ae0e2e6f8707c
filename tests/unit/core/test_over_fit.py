"""What a search for alpha that judges itself on its own rows says of that."""

import math

import pytest
import torch
from torch import Tensor, nn

from baselines.smooth_search import SmoothSearch
from segquant.core.layer import QuantizedLayer, quantize_linear
from segquant.core.over_fit import ENOUGH_PROMPTS, OverFit, over_fit_fields
from segquant.core.recipe import LayerRecipe
from segquant.core.segments import LayerShape, whole
from segquant.core.smoothing import SearchFit, SmoothingMode, SmoothingSettings
from segquant.method import SegQuant
from tests.unit.core.helpers import bits, calibrate, generator, one
from tests.unit.core.test_held_out import exact_error, in_parts, parts_of


def entry(parts: list[Tensor], shape: LayerShape, *, held_out: bool = False) -> QuantizedLayer:
    model = one(16, 8)
    settings = SmoothingSettings(mode=SmoothingMode.search, held_out=held_out)
    _, made = quantize_linear(
        model.linear,
        name="linear",
        seen=in_parts(model, parts).statistics["linear"],
        shape=shape,
        bits=bits(8, 8),
        recipe=LayerRecipe(smoothing=settings),
    )
    return made


WHOLE = whole(in_features=16, out_features=8)
SEGMENTS = LayerShape(output=(3, 5), input=(6, 10), one_sided=(False, False))


def test_the_layers_errors_against_float64() -> None:
    model, parts = one(16, 8), parts_of(4)
    seen = in_parts(model, parts).statistics["linear"]
    made = entry(parts, WHOLE)
    fit, weight = made.search_fit, model.linear.weight
    assert fit is not None
    power = float((seen.sample_TI.double() @ weight.double().T).square().sum())
    alpha = made.alphas[0][0]
    assert fit.held_out == pytest.approx(exact_error(seen, weight, alpha) / power, rel=1e-3)
    unsmoothed = exact_error(seen, weight, None) / power
    assert fit.held_out_unsmoothed == pytest.approx(unsmoothed, rel=1e-3)
    assert fit.in_sample == pytest.approx(made.relative_error, rel=1e-3)


def test_segments_add_up() -> None:
    made = entry(parts_of(4), SEGMENTS)
    assert made.search_fit is not None
    assert made.search_fit.in_sample == pytest.approx(made.relative_error, rel=1e-3)


def test_few_parts_over_fit_and_holding_out_is_the_remedy() -> None:
    def over_fit(*, held_out: bool) -> OverFit:
        fits = [entry(parts_of(4, seed=n), WHOLE, held_out=held_out).search_fit for n in range(6)]
        found = OverFit.of([fit for fit in fits if fit is not None], held_out=held_out)
        assert found is not None
        return found

    published, held_out = over_fit(held_out=False), over_fit(held_out=True)
    assert published.held_out_over_in_sample > 1.5 * held_out.held_out_over_in_sample
    assert published.held_out_over_unsmoothed > held_out.held_out_over_unsmoothed
    assert held_out.held_out_over_unsmoothed <= 1  # no smoothing is a candidate
    assert held_out.layers_worse_than_unsmoothed == 0
    assert (published.remedy, held_out.remedy) == ("method.held_out=true", "")


def test_the_estimate_falls_as_one_over_the_prompts() -> None:
    fits = [
        SearchFit(in_sample=1.0, held_out=ratio, held_out_unsmoothed=2.0) for ratio in (2.0, 8.0)
    ]
    found = OverFit.of(fits, held_out=False)
    assert found is not None
    assert found.held_out_over_in_sample == pytest.approx(4)
    assert found.held_out_over_unsmoothed == pytest.approx(2)
    assert found.layers_worse_than_unsmoothed == 1
    assert found.meets_at_times == pytest.approx(60)  # an excess of 3 becomes 0.05
    said = over_fit_fields({"meets_at_times": found.meets_at_times}, prompts=4)
    assert said["search_over_fit"]["meets_at_prompts"] == 240
    met = OverFit.of(
        [SearchFit(in_sample=1.0, held_out=1.01, held_out_unsmoothed=2.0)], held_out=False
    )
    assert met is not None
    assert met.meets_at_times == 1
    assert OverFit.of([], held_out=False) is None
    assert over_fit_fields(None, prompts=4) == {}


def test_reports_have_it_where_it_can_be_known() -> None:
    batches = parts_of(4)
    for method, known in (
        (SmoothSearch(), True),
        (SegQuant(), True),
        (SegQuant(smoothing=SmoothingMode.fixed), False),
    ):
        model = one(16, 8)
        calibration = in_parts(model, batches)
        calibration.graph = {}
        report = method.quantize(model, calibration=calibration, bits=bits(8, 8))
        assert (report.over_fit is not None) == known
        (layer,) = report.layers_quantized
        assert (layer["search_fit"] is not None) == known
        if known:
            ratio = layer["search_fit"]["held_out"] / layer["search_fit"]["in_sample"]
            assert report.over_fit["held_out_over_in_sample"] == pytest.approx(ratio)
    model = one(16, 8)
    alone = calibrate(model, [torch.cat(batches)])
    report = SmoothSearch().quantize(model, calibration=alone, bits=bits(8, 8))
    assert report.over_fit is None  # one part holds out none


@pytest.mark.parametrize("dead", ["weights", "inputs"])
def test_a_dead_layer_has_nothing_to_fit(dead: str) -> None:
    model, batches = one(16, 8), parts_of(4)
    if dead == "weights":
        nn.init.zeros_(model.linear.weight)
    else:
        batches = [0 * x for x in batches]
    calibration = in_parts(model, batches)
    report = SmoothSearch().quantize(model, calibration=calibration, bits=bits(8, 8))
    assert report.over_fit is None
    assert all(math.isfinite(layer["relative_error"]) for layer in report.layers_quantized)


def test_methods_say_how_many_prompts_do_no_harm() -> None:
    for method in (SmoothSearch, SegQuant):
        assert method().needs().prompts == ENOUGH_PROMPTS
        assert method(held_out=True).needs().prompts == 1
    assert SegQuant(smoothing=SmoothingMode.none).needs().prompts == 1
    joined = SegQuant().needs().union(SegQuant(held_out=True).needs())
    assert joined.prompts == ENOUGH_PROMPTS


def test_a_row_whose_channels_never_vary_is_fit_exactly() -> None:
    """Every part has the same extremes: nothing to over-fit."""
    x = torch.randn(32, 16, generator=generator(3))
    fit = entry([x, x, x, x], WHOLE).search_fit
    assert fit is not None
    assert fit.held_out == pytest.approx(fit.in_sample, rel=1e-6)
