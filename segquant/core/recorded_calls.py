"""The denoiser's own calls on disk, under a size cap, for methods that reconstruct block by block.

A call is what the pipeline gave the denoiser at one step for one batch. Tensors that do not change
from call to call (prompt embeddings) are stored once. What a block is given and says is not kept:
running the stored calls again, through the quantized model as far as it has got, makes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segquant.core.argument_trees import (
    Tree,
    UnstorableArgumentError,
    flatten_tree,
    unflatten_tree,
)
from segquant.core.several import PART, called_parts, named_arguments
from segquant.core.stepwise import timestep_of
from segquant.core.timesteps import timestep_name

INDEX = "calls.json"
DEFAULT_CAPTURE_BYTES = 2**28  # 256 MiB


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: its timestep, the tree of its arguments, and how much of the disk it takes."""

    timestep: float | None  # None where no argument tells it
    arguments: Tree
    stored_bytes: int  # of the tensors that no earlier call had

    @property
    def part(self) -> str:
        """Which of several denoisers it is of; empty where there is one."""
        return str(self.arguments["dict"].get(PART, {"value": ""})["value"])


@dataclass(frozen=True, kw_only=True)
class CapturedCalls:
    """A folder with the first calls that fitted under the cap."""

    folder: Path
    calls: tuple[Call, ...]
    full: bool = False  # whether a call was left out, as it would have passed the cap

    @classmethod
    def load(cls, folder: Path) -> CapturedCalls:
        """What a `CallRecorder` left there."""
        content = json.loads((folder / INDEX).read_text())
        calls = tuple(Call(**call) for call in content["calls"])
        return cls(folder=folder, calls=calls, full=content["full"])

    def write_index(self) -> None:
        """What `load` reads, but for the tensors, which lie there already."""
        content = {"calls": [vars(call) for call in self.calls], "full": self.full}
        (self.folder / INDEX).write_text(json.dumps(content))

    def within(self, cap_bytes: int) -> CapturedCalls:
        """The first calls that take no more than this: as if captured under this cap."""
        kept: list[Call] = []
        total = 0
        for call in self.calls:
            total += call.stored_bytes
            if total > cap_bytes:
                return CapturedCalls(folder=self.folder, calls=tuple(kept), full=True)
            kept.append(call)
        return self

    def arguments(self, call: Call, *, device: torch.device | str) -> dict[str, Any]:
        """The call's arguments by name, read from disk."""
        restored = restore_tree(call.arguments, self.folder, device=device)
        assert isinstance(restored, dict)
        return restored


class CallRecorder:
    """Writes the denoiser's calls to `folder` while it runs inside the `with` block.

    The first calls are kept, until the next would pass the cap; the index is written at the end.
    """

    def __init__(self, denoiser: nn.Module, folder: Path, *, cap_bytes: int) -> None:
        self._denoiser, self._folder, self._cap = denoiser, folder, cap_bytes
        self._calls: list[Call] = []
        self._stored: dict[str, int] = {}
        self._full = False
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, part in called_parts(self._denoiser).items():
            see = partial(self._see, name)
            self._hooks.append(part.register_forward_pre_hook(see, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        kept = CapturedCalls(folder=self._folder, calls=tuple(self._calls), full=self._full)
        kept.write_index()

    def _see(
        self, part: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._full:
            return
        arguments = named_arguments(module, args, kwargs, part=part)
        tensors: dict[str, Tensor] = {}
        tree = store_tree(arguments, tensors)
        fresh = {name: tensor for name, tensor in tensors.items() if name not in self._stored}
        size = sum(tensor.nbytes for tensor in fresh.values())
        if sum(self._stored.values()) + size > self._cap:
            self._full = True
            return
        for name, tensor in fresh.items():
            save_file({"tensor": tensor}, self._folder / f"{name}.safetensors")
            self._stored[name] = tensor.nbytes
        now = float(timestep_of(module, args, kwargs)) if timestep_name(arguments) else None
        self._calls.append(Call(timestep=now, arguments=tree, stored_bytes=size))


def store_tree(value: Any, tensors: dict[str, Tensor]) -> Tree:
    """JSON for nested arguments; their tensors go into `tensors`, named by content."""

    def put(tensor: Tensor, path: str) -> str:
        own = tensor.detach().cpu().contiguous().clone()
        raw = own.flatten().view(torch.uint8) if own.numel() else own
        label = f"{own.dtype} {tuple(own.shape)}".encode()
        name = sha256(label + raw.numpy().tobytes()).hexdigest()[:32]
        tensors[name] = own
        return name

    try:
        return flatten_tree(value, put)
    except UnstorableArgumentError as error:
        raise ValueError(
            f"a call of the denoiser holds a {error.kind}, which cannot be kept for "
            "reconstruction; use a method that needs no reconstruction"
        ) from None


def restore_tree(tree: Tree, folder: Path, *, device: torch.device | str) -> Any:
    """The inverse of `store_tree`, with the tensors' files in `folder`."""

    def read(name: str) -> Tensor:
        return load_file(folder / f"{name}.safetensors")["tensor"].to(device)

    return unflatten_tree(tree, read)
