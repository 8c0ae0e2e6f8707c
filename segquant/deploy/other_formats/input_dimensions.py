"""How many dimensions the input of each quantized layer has, from one call of the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segquant.deploy.other_formats.form_interface import Inputs, Layers


def input_dimensions(denoiser: nn.Module, layers: Layers, *, inputs: Inputs) -> dict[str, int]:
    """By the layers' names; those that the call does not reach are left out.

    Raises:
        ValueError: a layer is called with inputs of several numbers of dimensions.
    """
    seen: dict[str, set[int]] = {name: set() for name in layers}

    def watch(name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            seen[name].add((args[0] if args else kwargs["input"]).dim())

        return take

    hooks = [
        layer.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            denoiser(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    several = {name: sorted(found) for name, found in seen.items() if len(found) > 1}
    if several:
        name, found = next(iter(several.items()))
        raise ValueError(f"{name}: is called with inputs of {found} dimensions, not of one number")
    return {name: found.pop() for name, found in seen.items() if found}
