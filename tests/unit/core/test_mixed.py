"""Mixed bits: the choice against all others, its budget, what the report says, and bad requests."""

import copy
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from segquant.core.linear import QuantLinear
from segquant.core.mixed import choose_layer_bits, with_weight_bits
from segquant.core.plain_linears import linear_layers
from segquant.core.schemes import Bits, NumberFormat
from segquant.core.sensitivity import layer_sensitivities
from tests.unit.core.helpers import GROUP, bits, calibrate, generator, scheme

X = torch.randn(128, 32, generator=generator(0))


class Chain(nn.Module):
    """Layers of unlike sizes; the second and fourth have outliers among their weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = (32, 48, 32, 64, 32, 16)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for at, value in ((1, 4.0), (3, 2.0)):
            self.layers[at].weight.data[3, 5] = value

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def mixed(
    budget: float, *, fine: bool = False, widths: tuple[int, ...] = (8,), **more: Any
) -> Bits:
    return replace(bits(4, 8, fine=fine, **more), mixed_bits=list(widths), mixed_budget=budget)


@pytest.mark.parametrize("widths", [(8,), (5, 6, 8)])
@pytest.mark.parametrize("budget", [4.5, 5.0, 6.0])
def test_near_the_best_of_all_choices_and_within_the_budget(
    budget: float, widths: tuple[int, ...]
) -> None:
    """Greedy by error per bit against every combination: never better, and not far off."""
    model, how = Chain(), mixed(budget, widths=widths)
    calibration = calibrate(model, [X])
    before = copy.deepcopy(model.state_dict())
    chosen = choose_layer_bits(model, calibration=calibration, bits=how)
    ladders = [
        layer_sensitivities(model, calibration=calibration, bits=with_weight_bits(how, width))
        for width in (4, *widths)
    ]
    total = sum(linear.weight.numel() for linear in linear_layers(model).values())
    best, uniform = float("inf"), 0.0
    for levels in product(range(len(ladders)), repeat=5):
        picked = [ladders[level][n] for n, level in enumerate(levels)]
        error = sum(one.relative_error for one in picked)
        uniform = error if set(levels) == {0} else uniform
        if sum(one.stored_bits for one in picked) <= budget * total:
            best = min(best, error)
    picked = {
        (one.name, width): one
        for width, ladder in zip((4, *widths), ladders, strict=True)
        for one in ladder
    }
    mine = [picked[name, one.bits.weight.num_bits] for name, one in chosen.items()]
    assert sum(one.stored_bits for one in mine) <= budget * total
    error = sum(one.relative_error for one in mine)
    assert best <= error <= best + 0.2 * (uniform - best)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [RoundToNearest(), Gptq()], ids=["rtn", "gptq"])
def test_the_report_names_each_layers_bits_and_counts_them_exactly(method: Any) -> None:
    model = Chain()
    calibration, how = calibrate(model, [X]), mixed(7.0, keep=["layers.4"])
    report = method.quantize(model, calibration=calibration, bits=how)
    widths, bits_stored, weights = {}, 0, 0
    for entry in report.layers_quantized:
        layer = model.get_submodule(entry["name"])
        assert isinstance(layer, QuantLinear)
        widths[entry["name"]] = layer.spec.weight.num_bits
        assert entry["weight"].startswith(f"int{layer.spec.weight.num_bits} ")
        assert f"{layer.spec.weight.num_bits}-bit weight" in entry["notes"][-1]
        # the codes, a float32 weight scale and a float32 activation scale
        bits_stored += layer.in_features * layer.out_features * widths[entry["name"]] + 64
        weights += layer.in_features * layer.out_features
    assert widths["layers.1"] == 8
    assert set(widths.values()) == {4, 8}
    assert report.effective_bits_per_weight == bits_stored / weights
    kept = 32 * 16
    everything = (bits_stored + 16 * kept) / (weights + kept)
    assert report.effective_bits_per_weight_all == everything <= 7.0


def test_every_method_makes_the_same_choice() -> None:
    found = []
    for method in (RoundToNearest(), Gptq()):
        model = Chain()
        report = method.quantize(
            model, calibration=calibrate(model, [X]), bits=mixed(5.5, fine=True)
        )
        found.append([(entry["name"], entry["weight"]) for entry in report.layers_quantized])
    assert found[0] == found[1]


def test_a_large_budget_gives_all_the_most_and_a_small_one_says_what_it_takes() -> None:
    model = Chain()
    calibration = calibrate(model, [X])
    chosen = choose_layer_bits(model, calibration=calibration, bits=mixed(16, widths=(5, 8)))
    assert {one.bits.weight.num_bits for one in chosen.values()} == {8}
    with pytest.raises(ValueError, match=r"mixed_budget=4 bits per weight.*it takes 4\.0"):
        choose_layer_bits(model, calibration=calibration, bits=mixed(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixed_bits": [8]}, "give both"),
        ({"mixed_budget": 5.0}, "give both"),
        ({"mixed_bits": [4], "mixed_budget": 5.0}, r"above weight.num_bits=4 to 8, and \[4\]"),
        ({"mixed_bits": [16], "mixed_budget": 5.0}, r"and \[16\] do not"),
        ({"mixed_bits": [8], "mixed_budget": 5.0, "keep_budget": 6.0}, "give one budget"),
        (
            {
                "mixed_bits": [8],
                "mixed_budget": 5.0,
                "weight": scheme(4, GROUP, group_size=16, number_format=NumberFormat.nvfp4),
            },
            "integers only",
        ),
    ],
    ids=str,
)
def test_bad_requests_say_what_is_allowed(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(bits(4, 8), **change)
