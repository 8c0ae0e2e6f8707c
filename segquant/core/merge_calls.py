"""The denoiser's calls of shards of a calibration set, as one pass would have kept them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from segquant.core.argument_trees import Tree, unflatten_tree
from segquant.core.files import link_or_copy
from segquant.core.recorded_calls import Call, CapturedCalls

_NOTHING = torch.empty(0)


def merge_calls(shards: Sequence[Path], folder: Path, *, cap_bytes: int) -> None:
    """Writes to `folder` what `CapturedCalls.load` reads: the first calls that fit under the cap.

    Args:
        shards: what recorders under the same cap left, in the order of their batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[Call] = []
    stored: dict[str, int] = {}
    for shard in shards:
        captured = CapturedCalls.load(shard)
        for call in captured.calls:
            fresh = [name for name in _tensor_names(call.arguments) if name not in stored]
            sizes = {name: _tensor_bytes(shard, name) for name in fresh}
            size = sum(sizes.values())
            if sum(stored.values()) + size > cap_bytes:
                return CapturedCalls(folder=folder, calls=tuple(kept), full=True).write_index()
            for name in fresh:
                link_or_copy(shard / f"{name}.safetensors", folder / f"{name}.safetensors")
            stored |= sizes
            kept.append(replace(call, stored_bytes=size))
        if captured.full:  # one pass has as much or more at this point, and leaves the call out too
            return CapturedCalls(folder=folder, calls=tuple(kept), full=True).write_index()
    return CapturedCalls(folder=folder, calls=tuple(kept)).write_index()


def _tensor_names(tree: Tree) -> list[str]:
    names: dict[str, None] = {}

    def note(name: str) -> Tensor:
        names[name] = None
        return _NOTHING

    unflatten_tree(tree, note)
    return list(names)


def _tensor_bytes(folder: Path, name: str) -> int:
    return load_file(folder / f"{name}.safetensors")["tensor"].nbytes
