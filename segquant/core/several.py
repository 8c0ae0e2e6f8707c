"""Several denoisers of one pipeline as one module, so that they are quantized together.

The pipeline goes on calling its own modules, never the container: what watches calls hooks onto
each part, and a recorded call says which part it was, so that the container can be called again
as it was. One denoiser stays the plain module that it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

PART = "denoiser"  # among the arguments of a recorded call: the name of the part


class Denoisers(nn.ModuleDict):
    """The parts by the pipeline's names; a layer is `transformer.blocks.0.attn.to_q`."""

    def forward(self, *, denoiser: str, **arguments: Any) -> Any:
        return self[denoiser](**arguments)


def together(parts: Mapping[str, nn.Module]) -> nn.Module:
    """One denoiser as it is, several in a container."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return Denoisers(dict(parts))


def called_parts(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The modules that a pipeline calls, by name; the name of the only one is empty."""
    return dict(denoiser.items()) if isinstance(denoiser, Denoisers) else {"": denoiser}


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, part: str = ""
) -> dict[str, Any]:
    """The arguments of a module's call by name, and the part that it is of a container."""
    names = list(inspect.signature(module.forward).parameters)
    own = {**dict(zip(names, args, strict=False)), **kwargs}
    return {PART: part, **own} if part else own


def part_of_call(denoiser: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The module that a recorded call is of."""
    return called_parts(denoiser)[str(arguments.get(PART, ""))]


def part_of_layer(denoiser: nn.Module, layer: str) -> str:
    """The name of the part that a layer is in; empty where there is one denoiser."""
    return layer.partition(".")[0] if isinstance(denoiser, Denoisers) else ""
