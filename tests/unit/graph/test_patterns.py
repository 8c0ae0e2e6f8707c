"""Every pattern is read right by every front end."""

from typing import cast

import pytest
import torch

from segquant.graph import LayerGraph, analyze
from tests.unit.graph.patterns import PATTERNS, WIDTH, Everything

FRONTENDS = ("record", "export", "observe")


@pytest.fixture(scope="module", params=FRONTENDS)
def graph(request: pytest.FixtureRequest) -> LayerGraph:
    inputs = {key: torch.zeros(2, 4, WIDTH) for key in ("x", "y")}
    return analyze(Everything(), inputs, frontend=cast(str, request.param))


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_pattern(name: str, graph: LayerGraph) -> None:
    pattern = PATTERNS[name]
    for layer, sizes in pattern.out.items():
        assert graph[f"toys.{name}.{layer}"].output_segments == sizes
    for layer, sizes in pattern.into.items():
        segments = graph[f"toys.{name}.{layer}"].input_segments
        assert tuple(segment.size for segment in segments) == sizes, segments
        assert tuple(segment.one_sided for segment in segments) == pattern.one_sided[layer]


def test_all_operations_of_the_patterns_are_known(graph: LayerGraph) -> None:
    assert graph.unknown_ops == {}
