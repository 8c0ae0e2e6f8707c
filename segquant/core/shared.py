"""One smoothing vector for layers that read one tensor, as SmoothQuant has for q, k and v."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from segquant.core.calibration import Calibration
from segquant.core.elements import Element, folded
from segquant.core.fold_smoothing import FoldSite
from segquant.core.layer import layer_input
from segquant.core.recipe import LayerRecipe, effective_shape, partitions
from segquant.core.schemes import Bits
from segquant.core.segments import LayerShape
from segquant.core.smoothing import Smoothing, SmoothingMode, smooth_together

# What a method says of it among its elements, or among those left out.
FOLDING = Element(
    name="factors folded where the graph proves it exact, one vector for layers of one input",
    has=folded,
    otherwise="the graph has no place for any",
)
NOT_FOLDED = "factors folded into the previous operation: they are applied at run time"

ShapeOf = Callable[[str, nn.Linear], LayerShape]


def fold_sites(calibration: Calibration) -> tuple[FoldSite, ...]:
    """The graph's fold sites.

    Raises:
        ValueError: the calibration has no graph.
    """
    graph: Any = calibration.graph
    if graph is None:
        raise ValueError(
            "fold=true needs the denoiser's static graph and the calibration has none; set "
            "calibration.graph, or fold=false"
        )
    sites: tuple[FoldSite, ...] = graph.folds
    return sites


@torch.no_grad()
def shared_smoothing(
    linears: dict[str, nn.Linear],
    *,
    sites: Iterable[FoldSite],
    calibration: Calibration,
    bits: Bits,
    recipe: LayerRecipe,
    shape_of: ShapeOf,
) -> dict[str, Smoothing]:
    """The common vector of every site of which all layers are among `linears`, by layer."""
    smoothings: dict[str, Smoothing] = {}
    if recipe.smoothing.mode is SmoothingMode.none:
        return smoothings
    for site in sites:
        if not all(name in linears for name in site.layers):
            continue
        layers = [linears[name] for name in site.layers]
        cuts = []
        for name, linear in zip(site.layers, layers, strict=True):
            shape = effective_shape(shape_of(name, linear), bits=bits, recipe=recipe, notes=[])
            cuts.append(partitions(shape, name=name, bits=bits, recipe=recipe, notes=[]))
        if any(parts != cuts[0] for parts in cuts):
            continue
        seen = calibration.statistics[site.layers[0]]
        smoothing = smooth_together(
            [linear.weight for linear in layers],
            seen=layer_input(seen, layers[0].weight.device, gram=recipe.smoothing.use_gram),
            partitions=cuts[0],
            weight=bits.weight,
            activation=bits.activation,
            settings=recipe.smoothing,
        )
        smoothings.update(dict.fromkeys(site.layers, smoothing))
    return smoothings
