"""keep_budget: the choice, its limit and its reasons; and the passes that a calibration takes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from baselines.smooth_search import SmoothSearch
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import QuantLinear
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.sensitivity import choose_kept_layers, layer_sensitivities
from segquant.core.smoothing import SmoothingMode
from segquant.method import SegQuant
from tests.unit.core.helpers import bits, calibrate, generator

X = torch.randn(64, 32, generator=generator(0))


class Chain(nn.Module):
    """Four layers of one size; the third has an outlier among its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.layers[2].weight.data[3, 5] = 40.0
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def test_the_worst_layer_is_kept_first_and_the_budget_holds() -> None:
    model = Chain()
    calibration, how = calibrate(model, [X]), bits(4, 16)
    before = copy.deepcopy(model.state_dict())
    seen = layer_sensitivities(model, calibration=calibration, bits=how)
    assert max(seen, key=lambda one: one.relative_error).name == "layers.2"
    for budget, count in ((4.5, 0), (7.5, 1), (10.5, 2), (16.0, 4)):
        kept = choose_kept_layers(model, calibration=calibration, bits=how, budget=budget)
        assert len(kept) == count
        assert count == 0 or next(iter(kept)) == "layers.2"
        again = choose_kept_layers(model, calibration=calibration, bits=how, budget=budget)
        assert kept == again
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rounding", list(Rounding))
def test_every_method_keeps_the_same_layers_and_says_why(rounding: Rounding) -> None:
    model = Chain()
    report = quantize_layers(
        model,
        calibration=calibrate(model, [X]),
        bits=replace(bits(4, 16, keep=["layers.0"]), keep_budget=10.5),
        recipe=LayerRecipe(rounding=rounding),
    )
    assert [entry["name"] for entry in report.layers_kept] == ["layers.0", "layers.2"]
    assert report.layers_kept[0]["reason"] == "bits.keep: layers.0"
    assert report.layers_kept[1]["reason"].startswith("bits.keep_budget=10.5: relative error")
    assert "number 1 of 3" in report.layers_kept[1]["reason"]
    assert report.effective_bits_per_weight_all <= 10.5
    assert sum(isinstance(layer, QuantLinear) for layer in model.layers) == 2


def test_a_budget_that_cannot_be_says_what_it_takes() -> None:
    model = Chain()
    with pytest.raises(ValueError, match=r"keep_budget=4 bits per weight.*it takes 4\.03"):
        choose_kept_layers(model, calibration=calibrate(model, [X]), bits=bits(4, 16), budget=4)
    with pytest.raises(ValueError, match="keep_budget=17; give bits per weight"):
        replace(bits(4, 16), keep_budget=17)


def test_twenty_methods_take_as_many_forwards_as_one() -> None:
    """The authors' code runs the model 22 times over the calibration set for one method."""
    none = SmoothingMode.none
    few = [RoundToNearest()]
    many = [
        RoundToNearest(),
        SmoothSearch(),
        *(Gptq(damping=0.01 * n) for n in range(1, 10)),
        *(SegQuant(seg_linear=False, dual_scale=False, rank=rank) for rank in range(4)),
        *(
            SegQuant(seg_linear=False, dual_scale=False, smoothing=none, rounding=rounding, rank=1)
            for rounding in Rounding
        ),
        SegQuant(seg_linear=False, dual_scale=False, use_gram=True),
        SegQuant(seg_linear=False, dual_scale=False, low_rank_iterations=3, rank=2),
    ]
    assert len(many) == 20
    forwards = []
    for methods in (few, many):
        model, needs = Chain(), methods[0].needs()
        for method in methods[1:]:
            needs = needs.union(method.needs())
        batches = X.split(16)
        with StatisticsRecorder(model, gram=needs.gram, sample_rows=needs.rows) as recorder:
            for batch in batches:
                model(batch)
        calibration = calibrate(Chain(), batches)
        calibration = replace(calibration, statistics=recorder.statistics())
        for method in methods:
            target = copy.deepcopy(model)
            target.forwards = 0
            method.quantize(target, calibration=calibration, bits=bits(4, 8))
            assert target.forwards == 0
        forwards.append((recorder.forwards, model.forwards))
    assert forwards[0] == forwards[1] == (4, 4)
