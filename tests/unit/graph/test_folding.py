"""Where a scale per input channel can be taken into what makes a layer's input, and where not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.zoo import example_inputs
from segquant.graph import Fold, LayerGraph, analyze
from tests.unit.graph.small import SMALL

WIDTH = 8
Places = list[tuple[str, int, int, int, float]]  # name, first row, rows, first feature, constant


class Toy(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, 2 * WIDTH)
        self.b = nn.Linear(WIDTH, WIDTH)
        self.bare = nn.Linear(WIDTH, WIDTH, bias=False)
        self.c, self.d = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 5)
        self.wide = nn.Linear(2 * WIDTH, 3)
        self.norm = nn.LayerNorm(WIDTH)
        self.plain_norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.gain = nn.Parameter(torch.rand(WIDTH))
        self.run = run

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(self, x, y)


def graph_of(run: Callable[[Any, Tensor, Tensor], Any], *, frontend: str = "record") -> LayerGraph:
    inputs = {"x": torch.randn(2, 3, WIDTH), "y": torch.randn(2, 3, WIDTH)}
    return analyze(Toy(run), inputs, frontend=frontend)


def _modulated(m: Any, x: Tensor, y: Tensor) -> Tensor:
    shift, scale = m.a(y[:, 0]).chunk(2, -1)
    return m.plain_norm(x) * (1 + scale[:, None]) + shift[:, None]


NORM: Places = [("norm.bias", 0, WIDTH, 0, 0.0), ("norm.weight", 0, WIDTH, 0, 0.0)]
MODULATION: Places = [("a", 0, WIDTH, 0, 0.0), ("a", WIDTH, WIDTH, 0, 1.0)]
FOLDS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], tuple[str, ...], Places]] = {
    "norm": (lambda m, x, y: (m.c(m.norm(x)), y), ("c",), NORM),
    "linear": (lambda m, x, y: m.c(m.b(x)), ("c",), [("b", 0, WIDTH, 0, 0.0)]),
    "linear_without_bias": (lambda m, x, y: m.c(m.bare(x)), ("c",), [("bare", 0, WIDTH, 0, 0.0)]),
    "dropout_cast_relu": (
        lambda m, x, y: m.c(F.relu(F.dropout(m.b(x).double().float(), training=False))),
        ("c",),
        [("b", 0, WIDTH, 0, 0.0)],
    ),
    "gated": (
        lambda m, x, y: m.c((h := m.a(x).chunk(2, -1))[0] * F.gelu(h[1])),
        ("c",),
        [("a", 0, WIDTH, 0, 0.0)],
    ),
    "modulation": (lambda m, x, y: m.c(_modulated(m, x, y)), ("c",), MODULATION),
    "slices": (
        lambda m, x, y: m.c((h := m.a(x))[..., :WIDTH] + h[..., WIDTH:]),
        ("c",),
        [("a", 0, WIDTH, 0, 0.0), ("a", WIDTH, WIDTH, 0, 0.0)],
    ),
    "concatenation": (
        lambda m, x, y: m.wide(torch.cat([m.bare(y), m.b(x)], -1)),
        ("wide",),
        [("bare", 0, WIDTH, 0, 0.0), ("b", 0, WIDTH, WIDTH, 0.0)],
    ),
    "gain": (
        lambda m, x, y: m.c(0.5 * F.silu(x) * m.gain),
        ("c",),
        [("gain", 0, WIDTH, 0, 0.0)],
    ),
}


def places(fold: Fold) -> Places:
    return [(p.name, p.start, p.size, p.feature, p.offset) for p in fold.parts]


@pytest.mark.parametrize("frontend", ["record", "export", "observe"])
@pytest.mark.parametrize("name", sorted(FOLDS))
def test_a_scale_can_be_taken_into(name: str, frontend: str) -> None:
    run, layers, expected = FOLDS[name]
    graph = graph_of(run, frontend=frontend)
    found = [fold for fold in graph.folds if set(layers) <= set(fold.layers)]
    assert len(found) == 1, graph.fold_obstacles
    assert found[0].layers == layers
    assert sorted(places(found[0])) == sorted(expected)
    assert LayerGraph.from_json(graph.to_json()).folds == graph.folds


def test_layers_of_one_input_are_one_group() -> None:
    graph = graph_of(lambda m, x, y: ((h := m.norm(x)), m.c(h), m.d(h.flatten(0, 1)))[1:])
    assert [fold.layers for fold in graph.folds] == [("c", "d")]


def _in_place(m: Any, x: Tensor, y: Tensor) -> Tensor:
    h = m.b(x)
    h.view(-1)[:3].zero_()
    return m.c(h)


OBSTACLES: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "a residual": (lambda m, x, y: m.c(h := m.b(x)).sum() + h.sum(), "read by sum too"),
    "the result": (lambda m, x, y: (m.c(h := m.norm(x)), h), "the denoiser returns it"),
    "an activation": (lambda m, x, y: m.c(F.gelu(m.b(x))), "it comes from gelu"),
    "an input": (lambda m, x, y: m.c(x), "it comes from input x"),
    "a norm without weights": (lambda m, x, y: m.c(m.plain_norm(x)), "has no weights"),
    "a norm read elsewhere": (
        lambda m, x, y: m.c(m.norm(x)) + m.norm(y).sum(),
        "norm.weight is read in several places",
    ),
    "a linear called twice": (lambda m, x, y: m.c(m.b(x)) + m.b(y).sum(), "b is called several"),
    "one layer, two inputs": (lambda m, x, y: m.c(m.b(x)) + m.c(m.norm(y)), "c reads 2 tensors"),
    "one layer, twice": (lambda m, x, y: m.c(h := m.b(x)) + m.c(h), "c reads it 2 times"),
    "a chunk read elsewhere": (
        lambda m, x, y: (m.c((h := m.a(x).chunk(2, -1))[0]), h[0].exp())[0].sum() + h[0].sum(),
        "too",
    ),
    "overlapping slices": (
        lambda m, x, y: m.c((h := m.a(x))[..., :WIDTH]) + h[..., 4:12].sum(),
        "reads a part of it too",
    ),
    "both halves from one row": (
        lambda m, x, y: m.wide(torch.cat([h := m.b(x), h], -1)),
        "reads one tensor twice",
    ),
    "a square": (lambda m, x, y: m.c((h := m.b(x)) * h), "it comes from mul"),
    "a constant without a bias": (lambda m, x, y: m.c(1 + m.bare(x)), "bare has no bias"),
    "written in place": (_in_place, "it is written in place"),
    "one number per row": (lambda m, x, y: m.c(x * y[..., :1]), "it comes from"),
    "heads": (
        lambda m, x, y: m.c(m.b(x).unflatten(-1, (2, -1)).transpose(1, 2).reshape(2, 3, WIDTH)),
        "it comes from",
    ),
}


@pytest.mark.parametrize("name", sorted(OBSTACLES))
def test_a_scale_cannot_be_taken_into(name: str) -> None:
    run, reason = OBSTACLES[name]
    graph = graph_of(run)
    layer = "wide" if "wide" in graph.fold_obstacles and name.startswith("both") else "c"
    assert not any(layer in fold.layers for fold in graph.folds)
    assert reason in graph.fold_obstacles[layer]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_front_ends_agree_on_denoisers(name: str) -> None:
    denoiser = SMALL[name]()
    inputs = example_inputs(denoiser)
    graphs = [analyze(denoiser, inputs, frontend=f) for f in ("record", "export", "observe")]
    assert graphs[0].folds == graphs[1].folds == graphs[2].folds
    assert {n for f in graphs[0].folds for n in f.layers}.isdisjoint(graphs[0].fold_obstacles)


def test_the_places_of_real_blocks() -> None:
    graph = analyze(SMALL["sd3"](), example_inputs(SMALL["sd3"]()))
    by_layer = {fold.layers[0]: places(fold) for fold in graph.folds}
    block = "transformer_blocks.0."
    assert sorted(by_layer[f"{block}attn2.to_q"]) == [
        (f"{block}norm1.linear", 6 * 32, 32, 0, 0.0),
        (f"{block}norm1.linear", 7 * 32, 32, 0, 1.0),
    ]
    flux = analyze(SMALL["flux"](), example_inputs(SMALL["flux"]()))
    single = "single_transformer_blocks.0."
    assert (f"{single}proj_mlp", *(f"{single}attn.to_{n}" for n in "qkv")) in [
        fold.layers for fold in flux.folds
    ]
    assert "proj_out" in {n for fold in flux.folds for n in fold.layers}
    assert (
        "cat" in flux.fold_obstacles[f"{single}proj_out"]
        or "attn" in (flux.fold_obstacles[f"{single}proj_out"])
    )
