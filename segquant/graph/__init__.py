"""What the static graph of a denoiser says of each of its layers."""

from segquant.graph.analyze import analyze
from segquant.graph.example_inputs import capture_calls, capture_example_inputs, run_calls
from segquant.graph.merged import analyze_calls, merge_graphs
from segquant.graph.types import Fold, FoldPart, GraphError, LayerGraph, LayerInfo, Segment

__all__ = [
    "Fold",
    "FoldPart",
    "GraphError",
    "LayerGraph",
    "LayerInfo",
    "Segment",
    "analyze",
    "analyze_calls",
    "capture_calls",
    "capture_example_inputs",
    "merge_graphs",
    "run_calls",
]
