"""Where a Linear is cut, moved on purpose: does it matter that the cuts are the graph's own?

The paper's table 6 as an experiment: the same number of segments, at the graph's boundaries, at
random ones, at ones that straddle the graph's, or none.
Source: SegQuant (arXiv 2507.14811), table 6.
"""

from __future__ import annotations

import hashlib
from enum import Enum
from itertools import accumulate, pairwise

import torch

from segquant.core.segments import LayerShape


class Boundaries(Enum):
    """Member names are what a yaml says (`graph`: the denoiser's own)."""

    graph = "graph"
    random = "random"
    mismatched = "mismatched"  # moved by half of the smallest segment
    none = "none"


def moved_boundaries(
    shape: LayerShape, *, boundaries: Boundaries, seed: int, layer: str
) -> LayerShape:
    """The layer with as many segments, cut elsewhere.

    A new input segment is one-sided only if all that it covers is. Random cuts depend on the seed
    and the layer's name, not on the order of layers.
    """
    if boundaries is Boundaries.graph:
        return shape
    if boundaries is Boundaries.none:
        return shape.uncut()
    digest = hashlib.sha256(f"{seed} {layer}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    output = _moved(shape.output, boundaries, generator)
    inputs = _moved(shape.input, boundaries, generator)
    return LayerShape(output=output, input=inputs, one_sided=_one_sided(shape, inputs))


def _moved(
    sizes: tuple[int, ...], boundaries: Boundaries, generator: torch.Generator
) -> tuple[int, ...]:
    if len(sizes) == 1:
        return sizes
    total, count = sum(sizes), len(sizes)
    if boundaries is Boundaries.random:
        cuts = (torch.randperm(total - 1, generator=generator)[: count - 1] + 1).sort().values
        ends = [0, *cuts.tolist(), total]
    else:
        shift = min(sizes) // 2
        ends = [0, *(end - shift for end in list(accumulate(sizes))[:-1]), total]
    return tuple(b - a for a, b in pairwise(ends))


def _one_sided(shape: LayerShape, inputs: tuple[int, ...]) -> tuple[bool, ...]:
    old = [
        (end - size, end, flag)
        for size, end, flag in zip(
            shape.input, accumulate(shape.input), shape.one_sided, strict=True
        )
    ]
    return tuple(
        all(flag for start, stop, flag in old if start < end and stop > end - size)
        for size, end in zip(inputs, accumulate(inputs), strict=True)
    )
