"""A denoiser's folder: config.json and safetensors, in several files where they are large."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
FILE_BYTES = 10 * 10**9  # of one file, as diffusers has it


def write_folder(
    folder: Path,
    *,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    file_bytes: int = FILE_BYTES,
) -> int:
    """Writes it whole or not at all; the bytes of all tensors.

    Raises:
        ValueError: there is something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is there already; give a folder that is not there")
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    fresh.mkdir(parents=True)
    try:
        _write_json(fresh / CONFIG, config)
        _write_tensors(fresh, tensors, {**metadata, "format": "pt"}, file_bytes=file_bytes)
        if folder.is_dir():
            folder.rmdir()
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return sum(_bytes(tensor) for tensor in tensors.values())


def _write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, file_bytes: int
) -> None:
    shards = _shards(tensors, file_bytes=file_bytes)
    if len(shards) == 1:
        _save(folder / f"{STEM}.safetensors", tensors, shards[0], metadata)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / file, tensors, names, metadata)
        weight_map |= dict.fromkeys(names, file)
    total = sum(_bytes(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{STEM}.safetensors.index.json", index)


def _shards(tensors: Mapping[str, Tensor], *, file_bytes: int) -> list[list[str]]:
    """Names of tensors file by file, in their order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + _bytes(tensor) > file_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _bytes(tensor)
    return shards


def _save(
    file: Path, tensors: Mapping[str, Tensor], names: list[str], metadata: dict[str, str]
) -> None:
    # a copy of each: safetensors takes no two tensors of one memory
    own = {name: tensors[name].detach().cpu().contiguous().clone() for name in names}
    save_file(own, file, metadata=metadata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
