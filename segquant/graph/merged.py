"""The graphs of several denoisers as one, each read from a call of its own."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from segquant.core.several import called_parts
from segquant.graph.analyze import analyze
from segquant.graph.example_inputs import Calls
from segquant.graph.findings import blank, layers_of
from segquant.graph.types import Fold, LayerGraph


def analyze_calls(denoiser: nn.Module, calls: Calls, *, on_error: str = "raise") -> LayerGraph:
    """`analyze` of each denoiser alone: no fold and no segment goes from one to another.

    Layers are named as in the whole; of a denoiser that was never called nothing is known.
    """
    graphs: dict[str, LayerGraph] = {}
    for name, part in called_parts(denoiser).items():
        if name in calls:
            graphs[name] = analyze(part, calls[name], on_error=on_error)
        else:
            layers = layers_of(part).items()
            graphs[name] = LayerGraph({n: blank(n, x, reason="never called") for n, x in layers})
    return merge_graphs(graphs)


def merge_graphs(graphs: Mapping[str, LayerGraph]) -> LayerGraph:
    """One graph of all layers; the only one, if it has no name, stays as it is."""
    if list(graphs) == [""]:
        return graphs[""]
    unknown: Counter[str] = Counter()
    for graph in graphs.values():
        unknown.update(graph.unknown_ops)
    named = list(graphs.items())
    return LayerGraph(
        {
            f"{part}.{name}": replace(
                layer,
                name=f"{part}.{name}",
                shared_input=f"{part}.{layer.shared_input}",
                paths=tuple(f"{part}: {path}" for path in layer.paths),
            )
            for part, graph in named
            for name, layer in graph.items()
        },
        unknown_ops=unknown,
        folds=tuple(_under(part, fold) for part, graph in named for fold in graph.folds),
        fold_obstacles={
            f"{part}.{name}": why
            for part, graph in named
            for name, why in graph.fold_obstacles.items()
        },
        frontend=", ".join(dict.fromkeys(g.frontend for _, g in named if g.frontend)),
        fallback="; ".join(f"{part}: {g.fallback}" for part, g in named if g.fallback),
        error="; ".join(f"{part}: {g.error}" for part, g in named if g.error),
    )


def _under(part: str, fold: Fold) -> Fold:
    return Fold(
        layers=tuple(f"{part}.{name}" for name in fold.layers),
        parts=tuple(replace(place, name=f"{part}.{place.name}") for place in fold.parts),
    )
