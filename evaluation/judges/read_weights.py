"""Tensors of a file of weights, and where networks run."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
_WRAPPERS = ("state_dict", "model")  # under which a checkpoint may keep its tensors


def read_tensors(path: Path) -> Tensors:
    """Name -> tensor of a safetensors file, a TorchScript archive or what `torch.save` wrote.

    Nothing in the file is run: of a pickle only tensors and plain values are read.

    Raises:
        ValueError: it is none of these.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if _is_torchscript(path):
            archive: Any = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return dict(archive.state_dict())
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file can fail in any way that a reader has
        raise ValueError(f"{path}: cannot be read as weights ({error})") from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: holds {type(content).__name__}, not named tensors")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def count_blocks(tensors: Tensors, *, before: str) -> int:
    """How many blocks a network has whose tensors are called `{before}N....`."""
    numbers = {name[len(before) :].split(".")[0] for name in tensors if name.startswith(before)}
    return len(numbers)


def load_strictly(network: torch.nn.Module, tensors: Tensors, *, what: str) -> None:
    """Every parameter from the file, in float32, and nothing left over; then ready to be asked.

    Raises:
        ValueError: a tensor is missing, has another shape or is not known.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{what}: the weights do not fit the network: {error}") from error
    network.float().eval().requires_grad_(False)


def checked_device(device: str) -> torch.device:
    """Raises:
    ValueError: the machine has none.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"metrics run on {device} and torch sees no CUDA device here; give device=cpu"
        )
    return chosen


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """No gradients, and products of float32 in float32: TF32 would change the third digit."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.no_grad():
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
