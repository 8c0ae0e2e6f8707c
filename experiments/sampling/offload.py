"""Where the parts of a pipeline lie while it runs: all on the device, or one at a time.

What moves them are accelerate's hooks and diffusers' own, unmodified.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from segquant.core.several import called_parts

BLOCKS_AT_ONCE = 1  # of a denoiser that is offloaded by blocks


@contextmanager
def offloaded(pipeline: Any, *, device: torch.device, how: str) -> Iterator[None]:
    """Brings the parts of a pipeline to the device as they are needed, and all back at the end.

    Args:
        how: `none`, all parts stay on the device; `model`, a part is there while it runs;
            `blocks`, of the denoisers one block of layers at a time, of other parts as `model`.
    """
    if how == "none":
        pipeline.to(device)
        yield
        return
    try:
        if how == "model":
            pipeline.enable_model_cpu_offload(device=device)
        else:
            _by_blocks(pipeline, device)
        yield
    finally:
        pipeline.remove_all_hooks()
        for part in _networks(pipeline).values():
            _remove_group_hooks(part)
            part.to("cpu")


@contextmanager
def placed(denoiser: nn.Module, *, device: torch.device, how: str) -> Iterator[None]:
    """Brings a denoiser to the device by itself, without its pipeline; see `offloaded`."""
    parts = list(called_parts(denoiser).values())
    try:
        for part in parts:
            if how == "blocks":
                _group(part, device)
            else:
                part.to(device)
        yield
    finally:
        for part in parts if how != "none" else ():
            _remove_group_hooks(part)
            part.to("cpu")


def _by_blocks(pipeline: Any, device: torch.device) -> None:
    for part in _networks(pipeline).values():
        _group(part, device)


def _group(part: nn.Module, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    blocks = any(isinstance(child, nn.ModuleList) for child in part.children())
    apply_group_offloading(
        part,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type="block_level" if blocks else "leaf_level",
        num_blocks_per_group=BLOCKS_AT_ONCE if blocks else None,
    )


def _networks(pipeline: Any) -> dict[str, nn.Module]:
    return {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}


def _remove_group_hooks(part: nn.Module) -> None:
    from diffusers.hooks import HookRegistry

    for module in part.modules():
        registry = getattr(module, "_diffusers_hook", None)
        if isinstance(registry, HookRegistry):
            for name in list(registry.hooks):
                registry.remove_hook(name, recurse=False)
