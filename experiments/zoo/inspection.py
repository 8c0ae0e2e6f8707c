"""What the graph of a denoiser says, from a name, a config or a module; no weights are needed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass
from math import isinf
from typing import Any

from torch import nn

from experiments.zoo import build, example_inputs
from segquant.graph import LayerGraph, LayerInfo, Segment, analyze, capture_example_inputs

LEGEND = (
    "output, input: segments of the Linear's output and input features, 160x6 is six of 160; "
    "heads: those of attention.\npolarity, by input segment: + has a lower bound (after SiLU or "
    "GELU: DualScale), - an upper one, [a, b] both, . none."
)


def inspect_denoiser(target: str, *, frontend: str = "auto") -> LayerGraph:
    """The graph of `target`: a name of the zoo, a diffusers config file or a folder with one."""
    denoiser = build(target)
    return analyze(denoiser, example_inputs(denoiser), frontend=frontend)


def inspect_call(module: nn.Module, call: Callable[[], Any]) -> LayerGraph:
    """The graph of one's own module, with the inputs of its first call within `call`.

    For instance `inspect_call(pipe.transformer, lambda: pipe("a cat", num_inference_steps=1))`.
    """
    return analyze(module, capture_example_inputs(module, call))


def to_json(graph: LayerGraph) -> str:
    return graph.to_json()


def polarity(segment: Segment) -> str:
    """`+` bounded below, `-` bounded above, `[a, b]` bounded, `.` mixed."""
    if segment.one_sided:
        return "+" if isinf(segment.high) else "-"
    return "." if isinf(segment.low) else f"[{segment.low:g}, {segment.high:g}]"


def summarize(graph: LayerGraph) -> dict[str, int]:
    """Counts of layers by finding; `gated` is a product with an activation, as in GEGLU."""
    counts: Counter[str] = Counter()
    for layer in graph.values():
        kind = layer.kind
        one_sided = [segment.one_sided for segment in layer.input_segments]
        counts[kind] += 1
        counts[f"{kind}_output_segments"] += len(layer.output_segments) > 1
        counts[f"{kind}_input_segments"] += len(layer.input_segments) > 1
        counts[f"{kind}_heads"] += has_heads(layer)
        counts[f"{kind}_one_sided"] += all(one_sided)
        counts[f"{kind}_partly_one_sided"] += any(one_sided) and not all(one_sided)
        counts[f"{kind}_gated"] += is_gated(layer)
        counts[f"{kind}_called_again"] += layer.calls > 1
        counts[f"{kind}_never_called"] += layer.calls == 0
    return {key: count for key, count in counts.items() if count}


def has_heads(layer: LayerInfo) -> bool:
    return len(layer.head_segments) > len(layer.input_segments)


def is_gated(layer: LayerInfo) -> bool:
    """Whether a product with an activation, as in GEGLU, makes part of the input."""
    return any("(gated " in segment.producer for segment in layer.input_segments)


@dataclass(frozen=True, kw_only=True)
class LayerWords:
    """A layer's segments and polarity as tables show them; see `LEGEND`."""

    output: str
    input: str
    heads: str
    polarity: str


def words_of(layer: LayerInfo) -> LayerWords:
    return LayerWords(
        output=sizes(layer.output_segments),
        input=sizes(tuple(segment.size for segment in layer.input_segments)),
        heads=sizes(layer.head_segments) if has_heads(layer) else "",
        polarity=" ".join(polarity(segment) for segment in layer.input_segments),
    )


def render_table(graph: LayerGraph) -> str:
    """A table for a person: every layer, its segments and polarity, why, and a summary."""
    rows = [("layer", "shape", "output", "input", "heads", "polarity", "why")]
    for layer in graph.values():
        shape = f"{layer.kind} {layer.in_features}->{layer.out_features}"
        rows.append((layer.name, shape, *astuple(words_of(layer)), "; ".join(layer.paths)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    summary = [f"{name}: {count}" for name, count in summarize(graph).items()]
    for kind in ("embedding", "modulation"):
        named = [name for name, layer in graph.items() if layer.conditioning == kind]
        summary += [f"of the timestep alone, {kind}: {len(named)}"] if named else []
    if graph.unknown_ops:
        operations = ", ".join(f"{name} x{count}" for name, count in graph.unknown_ops.items())
        summary.append(f"operations not followed: {operations}")
    if graph.fallback:
        summary.append(f"read by running the denoiser: {graph.fallback}")
    if graph.error:
        summary.append(f"no segments: {graph.error}")
    return "\n".join([*(line.rstrip() for line in lines), "", *summary, "", LEGEND])


def sizes(parts: tuple[int, ...]) -> str:
    """`1536x6` or `3072+12288`; empty for one segment."""
    if len(parts) < 2:
        return ""
    groups: list[list[int]] = []
    for part in parts:
        if groups and groups[-1][0] == part:
            groups[-1][1] += 1
        else:
            groups.append([part, 1])
    return "+".join(f"{size}x{count}" if count > 1 else str(size) for size, count in groups)
