"""The segments of one Linear: parts of its output and of its input that get their own scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A Linear cut along its output and its input features.

    `one_sided` says which input segments come from an activation whose values lie (almost) on one
    side of zero. Uncut is one segment of full size.
    """

    output: tuple[int, ...]
    input: tuple[int, ...]
    one_sided: tuple[bool, ...]

    @property
    def out_features(self) -> int:
        return sum(self.output)

    @property
    def in_features(self) -> int:
        return sum(self.input)

    def uncut(self) -> LayerShape:
        """One segment either way; one-sided if every part was."""
        return LayerShape(
            output=(self.out_features,), input=(self.in_features,), one_sided=(all(self.one_sided),)
        )


def whole(*, in_features: int, out_features: int) -> LayerShape:
    """A Linear that is not cut, of an input that is not known to be one-sided."""
    return LayerShape(output=(out_features,), input=(in_features,), one_sided=(False,))


def conditioning_of(graph: Any, layer: str) -> str:
    """What the static graph says of a layer that sees the timestep and no tokens.

    "modulation", "embedding", or "" for any other, and where there is no graph.
    """
    try:
        return str(graph[layer].conditioning)
    except (KeyError, TypeError, AttributeError):
        return ""


def no_conditioning(graph: Any) -> str:
    """Why no layer is known to be of the timestep alone."""
    error = "the calibration has no static graph" if graph is None else getattr(graph, "error", "")
    return error or "the graph finds no Linear that sees the timestep and no tokens"


def shape_from_graph(
    graph: Any,
    layer: str,
    *,
    in_features: int,
    out_features: int,
    head_segments: bool,
) -> LayerShape:
    """What the static graph says of a layer; uncut where it says nothing.

    `graph[layer]` has `output_segments` (sizes), `input_segments` (each with `size` and
    `one_sided`) and `head_segments` (sizes: attention heads laid side by side).

    Raises:
        ValueError: the sizes do not add up to the layer's features.
    """
    try:
        info = graph[layer]
    except KeyError:
        return whole(in_features=in_features, out_features=out_features)
    output = tuple(info.output_segments) or (out_features,)
    inputs = [(part.size, bool(part.one_sided)) for part in info.input_segments]
    inputs = inputs or [(in_features, False)]
    heads = tuple(info.head_segments)
    if head_segments and len(inputs) == 1 and len(heads) > 1:
        inputs = [(size, inputs[0][1]) for size in heads]
    shape = LayerShape(
        output=output,
        input=tuple(size for size, _ in inputs),
        one_sided=tuple(one_sided for _, one_sided in inputs),
    )
    if (shape.in_features, shape.out_features) != (in_features, out_features):
        raise ValueError(
            f"{layer}: the graph's segments {shape.input} -> {shape.output} do not add up to its "
            f"{in_features} -> {out_features} features; analyse this denoiser again"
        )
    return shape
