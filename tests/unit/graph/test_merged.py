"""The graphs of several denoisers as one: what each says, under its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from experiments.zoo import example_inputs
from segquant.core.several import together
from segquant.graph import LayerGraph, analyze, analyze_calls, capture_calls, merge_graphs
from segquant.graph.example_inputs import NeverCalledError
from tests.unit.graph.small import SMALL


def two() -> dict[str, nn.Module]:
    return {"transformer": SMALL["sd3"](), "unet": SMALL["sdxl"]()}


def test_layers_and_folds_are_those_of_each_alone() -> None:
    parts = two()
    whole = together(parts)
    calls = {name: example_inputs(part) for name, part in parts.items()}
    graph = analyze_calls(whole, calls)
    assert len(graph) == sum(len(analyze(part, calls[name])) for name, part in parts.items())
    folds = {fold.layers for fold in graph.folds}
    for name, part in parts.items():
        alone = analyze(part, calls[name])
        for layer, info in alone.items():
            found = graph[f"{name}.{layer}"]
            assert found.name == f"{name}.{layer}"
            assert found.shared_input == f"{name}.{info.shared_input}"
            same = ("output_segments", "input_segments", "head_segments", "conditioning", "calls")
            assert all(getattr(found, key) == getattr(info, key) for key in same)
        for fold in alone.folds:
            assert tuple(f"{name}.{layer}" for layer in fold.layers) in folds
        assert all(f"{name}.{layer}" in graph.fold_obstacles for layer in alone.fold_obstacles)
    assert len(folds) > 2
    for fold in graph.folds:  # all of it names something, within one of them
        (part,) = {layer.partition(".")[0] for layer in fold.layers}
        for place in fold.parts:
            assert place.name.startswith(f"{part}.")
            if place.kind == "rows":
                assert isinstance(whole.get_submodule(place.name), nn.Linear)
            else:
                whole.get_parameter(place.name)
    back = LayerGraph.from_json(graph.to_json())
    assert dict(back) == dict(graph)


def test_the_only_one_is_as_it_is() -> None:
    part = SMALL["sd3"]()
    graph = analyze(part, example_inputs(part))
    assert merge_graphs({"": graph}) is graph
    assert dict(analyze_calls(part, {"": example_inputs(part)})) == dict(graph)


def test_one_that_was_never_called_hides_nothing_of_the_other() -> None:
    parts = two()
    whole, inputs = together(parts), example_inputs(parts["transformer"])
    calls = capture_calls(whole, lambda: parts["transformer"](**inputs))
    assert list(calls) == ["transformer"]
    graph = analyze_calls(whole, calls)
    assert not graph.error
    assert {layer.calls for name, layer in graph.items() if name.startswith("unet.")} == {0}
    assert any(layer.calls for layer in graph.values())
    with pytest.raises(NeverCalledError):
        capture_calls(parts["unet"], lambda: None)

    def fails() -> Any:
        raise ValueError("the pipeline's own")

    with pytest.raises(ValueError, match="own"):
        capture_calls(whole, fails)


class Sorts(nn.Module):
    """A forward that no front end can read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, device="meta")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out[int(out.sum())]


def test_an_error_names_its_denoiser() -> None:
    parts = {"transformer": SMALL["sd3"](), "controlnet": Sorts()}
    calls = {
        "transformer": example_inputs(parts["transformer"]),
        "controlnet": {"x": torch.zeros(2, 4)},
    }
    graph = analyze_calls(together(parts), calls, on_error="unsegmented")
    assert graph.error.startswith("controlnet: ")
    assert len(graph) == len(analyze(parts["transformer"], calls["transformer"])) + 1
