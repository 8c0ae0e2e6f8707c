"""Taking smoothing factors into the operation before, where the graph has shown that to be exact.

Layers that read one tensor share one smoothing vector s, and the division by s moves to where that
tensor is made: rows of an earlier linear, a norm's weights, an adaptive norm's scale and shift.
Nothing is left to do at run time.

s is first divided by a power of two so that no factor is above 1. That changes no code (the steps
of activation and weight move by that power against each other), and it matters in half precision:
an adaptive norm's `1 + scale` becomes `(1 + scale) / s`, which the linear before it gives as
`(1 + scale) / s - 1`; with s above 1 that is close to -1 and loses the digits that count.

Legend: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segquant.core.linear import QuantLinear


class Part(Protocol):
    """Where the values v of a tensor become (v + offset) / s - offset; see segquant.graph."""

    @property
    def kind(self) -> str: ...  # "rows" of a linear, elements of a "vector"
    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def feature(self) -> int: ...  # of the folded layers' input
    @property
    def offset(self) -> float: ...


class FoldSite(Protocol):
    """Layers that read one tensor, and the places that make it."""

    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def parts(self) -> Sequence[Part]: ...


def fold_smoothing(denoiser: nn.Module, sites: Iterable[FoldSite]) -> tuple[set[str], list[str]]:
    """Folds the smoothing of every site whose layers are all quantized with one common vector.

    Returns:
        The layers that need no smoothing at run time any more, and why others of the sites do.
    """
    folded: set[str] = set()
    reasons: list[str] = []
    for site in sites:
        layers = [denoiser.get_submodule(name) for name in site.layers]
        obstacle = _obstacle(layers)
        if obstacle is None:
            obstacle = _fold(denoiser, layers, site)
        if obstacle is None:
            folded |= set(site.layers)
        elif obstacle:
            reasons.append(f"{', '.join(site.layers)}: smoothing at run time: {obstacle}")
    return folded, reasons


def _obstacle(layers: Sequence[nn.Module]) -> str | None:
    """Why a site cannot be folded; empty where there is nothing to fold."""
    quants = [layer for layer in layers if isinstance(layer, QuantLinear)]
    smoothed = [quant.smoothing for quant in quants if quant.smoothing is not None]
    if not smoothed:
        return ""
    if len(quants) < len(layers):
        return "a layer that reads the same input is not quantized"
    if len(smoothed) < len(quants) or any(len(vectors) > 1 for vectors in smoothed):
        return "several smoothing vectors"
    if not all(torch.equal(vectors, smoothed[0]) for vectors in smoothed):
        return "several smoothing vectors"
    return None


def _fold(denoiser: nn.Module, layers: Sequence[Any], site: FoldSite) -> str | None:
    factors_I = layers[0].smoothing[0]
    power = torch.exp2(torch.ceil(torch.log2(factors_I.amax())))
    edits = _Edits()
    for part in site.parts:
        factors = factors_I[part.feature : part.feature + part.size] / power
        _divide(denoiser, part, factors, edits=edits)
    obstacle = edits.make()
    if obstacle is None:
        for layer in layers:
            layer.drop_smoothing(power=power)
    return obstacle


class _Edits:
    """New values of modules' tensors, none of which is put in place before all are known."""

    def __init__(self) -> None:
        self._values: dict[tuple[nn.Module, str], Tensor] = {}

    def divide(self, module: nn.Module, name: str, at: slice, by: Tensor, *, offset: float) -> None:
        """(v + offset) / by - offset, in float32, for elements or rows `at` of a tensor."""
        before = self._values.get((module, name))
        if before is None:
            before = getattr(module, name).detach()
        after = before.float().clone()
        by = by.to(after.device).reshape(-1, *(1 for _ in after.shape[1:]))
        after[at] = (after[at] + offset) / by - offset
        self._values[module, name] = after.to(before.dtype)

    def make(self) -> str | None:
        """Puts all in place, or none and says why."""
        for (module, name), value in self._values.items():
            if not bool(value.isfinite().all()):
                return f"{name} of a {type(module).__name__} would overflow in {value.dtype}"
        for (module, name), value in self._values.items():
            own = getattr(module, name)
            is_parameter = isinstance(own, nn.Parameter)
            setattr(module, name, nn.Parameter(value, own.requires_grad) if is_parameter else value)
        for module in {module for module, _ in self._values}:
            if isinstance(module, QuantLinear):
                module.release()
        return None


def _divide(denoiser: nn.Module, part: Part, factors: Tensor, *, edits: _Edits) -> None:
    at = slice(part.start, part.start + part.size)
    if part.kind == "vector":
        owner, _, name = part.name.rpartition(".")
        edits.divide(denoiser.get_submodule(owner), name, at, factors, offset=part.offset)
        return
    module = denoiser.get_submodule(part.name)
    name = "weight"
    if isinstance(module, QuantLinear):
        name = "row_factors"
        module.add_row_factors()
    edits.divide(module, name, at, factors, offset=0.0)
    if module.bias is not None:
        edits.divide(module, "bias", at, factors, offset=part.offset)
