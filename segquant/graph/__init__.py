"""What the static graph of a denoiser says of each of its layers."""

from segquant.graph.analyze import analyze
from segquant.graph.example_inputs import capture_example_inputs
from segquant.graph.types import Fold, FoldPart, GraphError, LayerGraph, LayerInfo, Segment

__all__ = [
    "Fold",
    "FoldPart",
    "GraphError",
    "LayerGraph",
    "LayerInfo",
    "Segment",
    "analyze",
    "capture_example_inputs",
]
