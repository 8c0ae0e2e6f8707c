"""Parts of a pipeline by their own: which class each is, where it lies, and it in memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.errors import UserError
from experiments.sampling.model_folder import (
    check_part_weights,
    denoisers_of,
    find_folder,
    part_config,
    part_variant,
    pipeline_index,
)
from experiments.sampling.single_files import single_file

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of `model.parts`."""

    name: str
    kind: type
    folder: Path  # of its config, and of its weights where there is no file
    file: Path | None = None  # a checkpoint in its authors' layout

    @property
    def weights(self) -> Path:
        return self.folder if self.file is None else self.file


def given_parts(config: ModelConfig, folder: Path, index: Mapping[str, Any]) -> dict[str, Part]:
    """What `model.parts` names, found and looked at; nothing is loaded.

    Args:
        folder, index: the pipeline's; a single file's config is its part's there.

    Raises:
        UserError: one is not there, has no weights, or its class is not known.
    """
    return {
        name: _found(name, path, folder, index, key=f"model.parts.{name}")
        for name, path in config.parts.items()
    }


def denoiser_folders(config: ModelConfig, folder: Path) -> dict[str, Path]:
    """Where the config of each part that is quantized lies, and its weights unless in one file."""
    index = pipeline_index(folder)
    given = given_parts(config, folder, index)
    return {
        name: given[name].folder if name in given else folder / name
        for name in denoisers_of(config, index)
    }


def _found(name: str, path: str, folder: Path, index: Mapping[str, Any], *, key: str) -> Part:
    file = single_file(path)
    if file is not None:
        if not (folder / name / _CONFIG).is_file():
            raise UserError(f"{key}={path}: {folder} has no {name}/{_CONFIG} to read the file by")
        kind = part_class(index[name], where=f"{folder}: {name}")
        if not hasattr(kind, "from_single_file"):
            raise UserError(f"{key}={path}: {kind.__name__} reads no single file; give a folder")
        return Part(name=name, kind=kind, folder=folder / name, file=file)
    hub_id, _, commit = path.partition("@")
    own = find_folder(hub_id, revision=commit or None, key=key)
    if not (own / _CONFIG).is_file() and (own / name / _CONFIG).is_file():
        own = own / name  # a whole pipeline's folder
    if not (own / _CONFIG).is_file():
        raise UserError(f"{key}={path}: it has no {_CONFIG}; give the folder of one network")
    check_part_weights(own)
    return Part(name=name, kind=_class_of(part_config(own), where=key), folder=own)


def _class_of(config: Mapping[str, Any], *, where: str) -> type:
    """The class that a network's own config names."""
    if isinstance(name := config.get("_class_name"), str):
        return part_class(["diffusers", name], where=where)
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return part_class(["transformers", names[0]], where=where)
    raise UserError(f"{where}: its {_CONFIG} names no class (_class_name or architectures)")


def part_class(named: Any, *, where: str) -> type:
    """The class that an index names by library and class.

    Raises:
        UserError: it is not installed.
    """
    library, name = named
    modules = (library, f"diffusers.pipelines.{library}")
    for module in modules:
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, RuntimeError, ValueError):
            continue
        if isinstance(kind, type):
            return kind
    raise UserError(f"{where}: no class {name} in {library} here; install a newer one")


def read_part(part: Part, *, dtype: torch.dtype) -> Any:
    """The part on the CPU, as its class reads it."""
    if part.file is not None:
        return part.kind.from_single_file(  # type: ignore[attr-defined]
            str(part.file), config=str(part.folder), torch_dtype=dtype, local_files_only=True
        )
    return read_folder(part.kind, part.folder, dtype=dtype)


def read_folder(kind: Any, folder: Path, *, dtype: torch.dtype) -> Any:
    """A network from its folder; its tensors are the mapped file's own where types agree."""
    argument = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    return kind.from_pretrained(
        str(folder), local_files_only=True, variant=part_variant(folder), **{argument: dtype}
    )
