"""A search that judges each row by the other parts of the calibration set."""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.smooth_search import SmoothSearch
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.layer import layer_input, quantize_linear
from segquant.core.recipe import LayerRecipe
from segquant.core.segments import whole
from segquant.core.smoothing import SmoothingMode, SmoothingSettings, smoothing_factors
from segquant.method import SegQuant
from tests.unit.core.helpers import One, bits, calibrate, generator, one, power_ratio

CPU = torch.device("cpu")
SEARCH = SmoothingSettings(mode=SmoothingMode.search)
HELD_OUT = SmoothingSettings(mode=SmoothingMode.search, held_out=True)


def in_parts(model: One, parts: Sequence[Tensor], *, rows: int = 4096) -> Calibration:
    with torch.no_grad(), StatisticsRecorder(model, gram=False, sample_rows=rows) as recorder:
        for number, x in enumerate(parts):
            recorder.part = number
            model(x)
    return Calibration(statistics=recorder.statistics(), forwards=recorder.forwards)


def parts_of(count: int, *, seed: int = 0, features: int = 16) -> list[Tensor]:
    """Heavy tails: an extreme of one part says little of the others'."""
    draws = torch.randn(count, 32, features, generator=generator(seed))
    return [x * x.abs().pow(2.0) for x in draws.unbind(0)]


def test_extremes_and_rows_know_their_part() -> None:
    model, parts = one(16, 8), parts_of(3)
    seen = in_parts(model, parts).statistics["linear"]
    assert seen.part_low_PI is not None
    assert seen.part_high_PI is not None
    assert seen.sample_part_T is not None
    for number, x in enumerate(parts):
        assert torch.equal(seen.part_low_PI[number], x.amin(0))
        assert torch.equal(seen.part_high_PI[number], x.amax(0))
        own = seen.sample_TI[seen.sample_part_T == number]
        assert torch.equal(own.sort(0).values, x.sort(0).values)
    everything = calibrate(model, [torch.cat(parts)], gram=False, rows=4096).statistics["linear"]
    assert torch.equal(seen.low_I, everything.low_I)
    assert torch.equal(seen.high_I, everything.high_I)
    assert everything.part_low_PI is everything.sample_part_T is None


def test_parts_survive_the_disk(tmp_path: Path) -> None:
    calibration = in_parts(one(16, 8), parts_of(3))
    calibration.save(tmp_path / "c")
    loaded = Calibration.load(tmp_path / "c").statistics["linear"]
    for key in ("part_low_PI", "part_high_PI", "sample_part_T"):
        assert torch.equal(getattr(loaded, key), getattr(calibration.statistics["linear"], key))


def exact_error(seen: LayerStatistics, w_OI: Tensor, alpha: float | None) -> float:
    """Float64, from the definition: factors, scales and codes of a row from the other parts."""
    assert seen.sample_part_T is not None
    total = 0.0
    for part in seen.sample_part_T.unique():
        x, fit = (seen.sample_TI[m].double() for m in split(seen.sample_part_T == part))
        w = w_OI.double()
        s = smoothing_factors(fit.abs().amax(0), w.abs().amax(0), alpha=alpha).double()
        step_w, step_x = (w * s).abs().max() / 127, (fit / s).abs().max() / 127
        w_hat = (w * s / step_w).round() * step_w
        x_hat = (x / s / step_x).round().clamp(-128, 127) * step_x
        total += float((x_hat @ w_hat.T - x @ w.T).square().sum())
    return total


def split(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask, ~mask


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_alpha_is_the_best_on_held_out_rows(seed: int) -> None:
    model, parts = one(16, 8, seed=seed), parts_of(4, seed=seed)
    seen = in_parts(model, parts).statistics["linear"]
    shape = whole(in_features=16, out_features=8)
    _, entry = quantize_linear(
        model.linear,
        name="linear",
        seen=seen,
        shape=shape,
        bits=bits(8, 8),
        recipe=LayerRecipe(smoothing=HELD_OUT),
    )
    errors = {a: exact_error(seen, model.linear.weight, a) for a in HELD_OUT.candidates()}
    assert errors[entry.alphas[0][0]] <= 1.001 * min(errors.values())


def test_what_the_layer_gets_comes_from_all_parts() -> None:
    model, parts = one(16, 8), parts_of(4)
    seen = in_parts(model, parts).statistics["linear"]
    shape = whole(in_features=16, out_features=8)
    settings = SmoothingSettings(
        mode=SmoothingMode.search, held_out=True, alpha_min=0.5, alpha_max=0.5, include_none=False
    )
    quant, _ = quantize_linear(
        copy.deepcopy(model.linear),
        name="linear",
        seen=seen,
        shape=shape,
        bits=bits(8, 8),
        recipe=LayerRecipe(smoothing=settings),
    )
    weight = model.linear.weight.detach()
    assert quant.smoothing is not None
    factors = smoothing_factors(seen.amax, weight.abs().amax(0), alpha=0.5)
    torch.testing.assert_close(quant.smoothing[0], factors)
    assert quant.activation_scale is not None
    expected = (seen.amax / factors).max() / 127
    torch.testing.assert_close(quant.activation_scale.flatten()[0], expected)


def test_held_out_rows_choose_better_where_extremes_are_rare() -> None:
    """On new data the in-sample choice clips what its tight ranges have not seen."""
    better = 0
    for seed in range(8):
        model = one(16, 8, seed=seed)
        seen = in_parts(model, parts_of(4, seed=seed)).statistics["linear"]
        fresh = torch.cat(parts_of(40, seed=seed + 1000))
        target = model(fresh).detach()
        found = []
        for settings in (SEARCH, HELD_OUT):
            quant, _ = quantize_linear(
                copy.deepcopy(model.linear),
                name="linear",
                seen=seen,
                shape=whole(in_features=16, out_features=8),
                bits=bits(8, 8),
                recipe=LayerRecipe(smoothing=settings),
            )
            found.append(power_ratio(quant(fresh), target))
        better += found[1] <= found[0]
    assert better >= 7


def test_one_part_or_a_gram_matrix_cannot_be_held_out() -> None:
    model = one(16, 8)
    seen = calibrate(model, parts_of(1)).statistics["linear"]
    with pytest.raises(ValueError, match="several parts"):
        layer_input(seen, CPU, gram=False).views(held_out=True)
    with pytest.raises(ValueError, match="use_gram"):
        SmoothingSettings(mode=SmoothingMode.search, held_out=True, use_gram=True)


@pytest.mark.parametrize("method", [SmoothSearch, SegQuant], ids=lambda m: m.__name__)
def test_the_methods_settings_reach_the_search(method: Any) -> None:
    """On some seed the two searches choose otherwise."""
    different = 0
    for seed in range(6):
        found = []
        for held_out in (False, True):
            model = one(16, 8, seed=seed)
            calibration = in_parts(model, parts_of(4, seed=seed))
            calibration.graph = {} if method is SegQuant else SimpleNamespace(folds=())
            settings = method(held_out=held_out)
            settings.quantize(model, calibration=calibration, bits=bits(8, 8))
            found.append(model(torch.cat(parts_of(4, seed=seed))))
        different += not torch.equal(*found)
    assert different
