"""Tensors and a manifest in a folder: safetensors and JSON, no pickle, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS_FILE = "tensors.safetensors"
MANIFEST_FILE = "manifest.json"
_MAPPED_BYTES = 2**28  # of a file that is read
_NAMES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32"}  # as safetensors has them


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """A tensor that is made when it is its turn to be written, and is let go of afterwards."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # float64, int64 or float32
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_folder(
    folder: str | os.PathLike[str], *, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]
) -> None:
    """Writes under a temporary name beside `folder`, then renames; an older folder is replaced."""
    with _replaced(Path(folder)) as fresh:
        save_file(_separate(tensors), fresh / TENSORS_FILE)
        _write_manifest(fresh, manifest)


def write_deferred(
    folder: str | os.PathLike[str], *, tensors: Mapping[str, Deferred], manifest: Mapping[str, Any]
) -> None:
    """As `write_folder`, with one tensor in memory at a time."""
    with _replaced(Path(folder)) as fresh:
        _save_one_by_one(tensors, fresh / TENSORS_FILE)
        _write_manifest(fresh, manifest)


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A fresh folder that takes the target's place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    fresh = target.with_name(f".{target.name}.{unique}.new")
    fresh.mkdir()
    try:
        yield fresh
        if target.exists():
            stale = target.with_name(f".{target.name}.{unique}.old")
            os.replace(target, stale)
            os.replace(fresh, target)
            shutil.rmtree(stale)
        else:
            os.replace(fresh, target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False)
    (folder / MANIFEST_FILE).write_text(text + "\n")


def _save_one_by_one(tensors: Mapping[str, Deferred], path: Path) -> None:
    """safetensors' format: the header's length, the header, and the tensors, the widest first."""
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header, end = {}, 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        shape, dtype = list(tensors[name].shape), _NAMES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            tensor = tensors[name].make().detach().contiguous()
            made = (tuple(tensor.shape), tensor.dtype)
            assert made == (tensors[name].shape, tensors[name].dtype), name
            stream.write(tensor.numpy().data)


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name; copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_folder(
    folder: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a folder that `write_folder` wrote.

    Raises:
        ValueError: the folder holds no such thing, or one of another kind.
    """
    manifest = read_manifest(folder, kind=kind)
    return load_file(Path(folder) / TENSORS_FILE), manifest


def read_tensors(
    folder: str | os.PathLike[str], *, place: Mapping[str, torch.device]
) -> dict[str, Tensor]:
    """A folder's tensors, each where it belongs (on the CPU where `place` does not say).

    Copies, a few at a time: a file's mapped memory counts as this process's as long as it is
    mapped; it starts anywhere, and on some CPUs the last bits of a product of floats depend on
    where its operands start.
    """
    path = Path(folder) / TENSORS_FILE
    with safe_open(path, framework="pt") as opened:
        names = list(opened.keys())
    tensors: dict[str, Tensor] = {}
    while len(tensors) < len(names):
        with safe_open(path, framework="pt") as opened:
            read = 0
            for name in names[len(tensors) :]:
                mapped = opened.get_tensor(name)
                tensors[name] = mapped.to(place.get(name, mapped.device), copy=True)
                read += mapped.nbytes
                if read > _MAPPED_BYTES:
                    break
    return tensors


def read_manifest(folder: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """The manifest alone; both files are there.

    Raises:
        ValueError: the folder holds no such thing, or one of another kind.
    """
    source = Path(folder)
    missing = [n for n in (TENSORS_FILE, MANIFEST_FILE) if not (source / n).is_file()]
    if missing:
        raise ValueError(
            f"{source}: no {' and no '.join(missing)}; give a folder with a saved {kind}"
        )
    manifest: dict[str, Any] = json.loads((source / MANIFEST_FILE).read_text())
    if manifest.get("kind") != kind:
        raise ValueError(f"{source}: holds a {manifest.get('kind')}, not a {kind}")
    return manifest


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors asks."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        pointer = own.untyped_storage().data_ptr()
        if pointer in seen or own.untyped_storage().nbytes() != own.nbytes:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result
