"""The pass over a denoiser: what is quantized, what is kept and why, and what it costs."""

import pytest
import torch
from torch import Tensor, nn

from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.method_interface import QuantizationReport, StatisticsNeeds
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.segments import LayerShape, shape_from_graph
from tests.unit.core.helpers import bits, calibrate, generator, info


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


X = torch.randn(3, 10, 8, generator=generator(0))


def test_kept_layers_have_their_reason_and_uncalled_ones_do_not_crash() -> None:
    """In the authors' code a layer that calibration never reached aborted the run."""
    model = Model()
    report = quantize_layers(
        model,
        calibration=calibrate(model, [X]),
        bits=bits(keep=["sec*"]),
        recipe=LayerRecipe(),
    )
    assert report.layers_kept == [
        {"name": "second", "reason": "bits.keep: sec*"},
        {"name": "unused", "reason": "never called during calibration"},
    ]
    assert [layer["name"] for layer in report.layers_quantized] == ["first"]
    assert isinstance(model.first, QuantLinear)
    assert type(model.second) is type(model.unused) is nn.Linear


@pytest.mark.parametrize("fine", [True, False])
def test_a_layer_that_saw_only_zeros_has_no_static_range(fine: bool) -> None:
    model = Model()
    report = quantize_layers(
        model, calibration=calibrate(model, [0 * X]), bits=bits(fine=fine), recipe=LayerRecipe()
    )
    first = "its input was zero throughout calibration: no range for its scales"
    kept = {entry["name"]: entry["reason"] for entry in report.layers_kept}
    assert kept.get("first") == (None if fine else first)
    assert bool(model(X).isfinite().all())


def test_sixteen_bits_are_exact() -> None:
    model = Model()
    expected = model(X)
    calibration = calibrate(model, [X])
    recipe = LayerRecipe(rounding=Rounding.gptq, low_rank=LowRankSettings(rank=2))
    report = quantize_layers(model, calibration=calibration, bits=bits(16, 16), recipe=recipe)
    assert torch.equal(model(X), expected)
    assert report.layers_quantized == []
    assert report.effective_bits_per_weight == report.effective_bits_per_weight_all == 16
    assert {entry["reason"] for entry in report.layers_kept} == {"bits test quantize nothing"}


def test_bits_bytes_and_products_are_counted() -> None:
    model = Model()
    report = quantize_layers(
        model,
        calibration=calibrate(model, [X]),
        bits=bits(4, 8, fine=True, keep=["unused"]),
        recipe=LayerRecipe(low_rank=LowRankSettings(rank=2), dual_scale=True),
        shape_of=lambda name, linear: LayerShape(
            output=(linear.out_features,),
            input=(linear.in_features,),
            one_sided=(name == "second",),
        ),
    )
    weights = 8 * 16 + 16 * 4
    stored = 4 * weights + 32 * (16 + 4) + 16 * 2 * (8 + 16 + 16 + 4)
    assert report.effective_bits_per_weight == pytest.approx(stored / weights)
    assert report.effective_bits_per_weight_all == pytest.approx(
        (stored + 16 * 16) / (weights + 16)
    )
    assert report.weight_bytes == (stored + 16 * 16) // 8
    extra = 16 * 4 + 2 * (8 + 16) + 2 * (16 + 4)
    assert report.extra_macs_fraction == pytest.approx(extra / weights)
    assert QuantizationReport.from_dict(report.to_dict()) == report


def test_gptq_without_a_gram_matrix_says_what_to_do() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"first: the calibration has no Gram matrix.*gram=True"):
        quantize_layers(
            model,
            calibration=calibrate(model, [X], gram=False),
            bits=bits(),
            recipe=LayerRecipe(rounding=Rounding.gptq),
        )


def test_the_same_twice_is_bit_equal() -> None:
    outputs = []
    for _ in range(2):
        model = Model()
        recipe = LayerRecipe(rounding=Rounding.gptq, low_rank=LowRankSettings(rank=2))
        quantize_layers(model, calibration=calibrate(model, [X]), bits=bits(4, 4), recipe=recipe)
        outputs.append(model(X))
    assert torch.equal(*outputs)


def test_needs_of_a_sweep_are_joined() -> None:
    joined = StatisticsNeeds(gram=True, rows=8).union(StatisticsNeeds(rows=32, graph=True))
    assert joined == StatisticsNeeds(gram=True, rows=32, graph=True)


def test_shapes_from_a_graph() -> None:
    sizes = {"in_features": 8, "out_features": 6}
    graph = {
        "a": info(6, 8, output=(2, 4), inputs=((3, False), (5, True))),
        "b": info(6, 8, heads=(4, 4)),
        "wrong": info(6, 8, output=(2, 2)),
    }
    cut = shape_from_graph(graph, "a", head_segments=False, **sizes)
    assert (cut.output, cut.input, cut.one_sided) == ((2, 4), (3, 5), (False, True))
    assert cut.uncut() == shape_from_graph(graph, "absent", head_segments=False, **sizes)
    assert shape_from_graph(graph, "b", head_segments=False, **sizes).input == (8,)
    assert shape_from_graph(graph, "b", head_segments=True, **sizes).input == (4, 4)
    with pytest.raises(ValueError, match=r"wrong: the graph's segments .* do not add up"):
        shape_from_graph(graph, "wrong", head_segments=False, **sizes)
