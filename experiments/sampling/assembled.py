"""A pipeline put together: its folder or single file, other parts, scheduler and adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.adapters import fuse_adapter
from experiments.sampling.model_folder import (
    SAFETY_CHECKER,
    check_folder,
    has_weights,
    network_folders,
    pipeline_index,
    variant_of,
)
from experiments.sampling.model_parts import given_parts, part_class, read_folder, read_part
from experiments.sampling.pipeline_classes import pipeline_class
from experiments.sampling.schedulers import chosen_scheduler
from experiments.sampling.single_files import contents, is_lacking, single_file

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig


def assemble(config: ModelConfig, *, instead: Mapping[str, Any] | None = None) -> Any:
    """The pipeline on the CPU, in evaluation mode.

    A safety checker is left out: it would paint images black, in every row alike.

    Args:
        instead: parts by name that are not read from disk.

    Raises:
        UserError: diffusers cannot load it.
    """
    folder = check_folder(config)
    index = pipeline_index(folder)
    kind: Any = pipeline_class(index, path=config.path, name=config.pipeline, given=config.parts)
    dtype = getattr(torch, config.dtype)
    parts = given_parts(config, folder, index)
    with told_as_of(config):
        given: dict[str, Any] = dict(instead or {})
        given |= {n: read_part(part, dtype=dtype) for n, part in parts.items() if n not in given}
        if SAFETY_CHECKER in index:
            given[SAFETY_CHECKER] = None
        common = {"torch_dtype": dtype, "local_files_only": True, **given}
        file = single_file(config.path)
        if file is None:
            variant = variant_of(folder, besides={*parts, *given})
            pipeline = kind.from_pretrained(folder, variant=variant, **common)
        else:
            beside = _beside(file, folder, index, but=given, dtype=dtype)
            pipeline = kind.from_single_file(str(file), config=str(folder), **common, **beside)
        scheduler = chosen_scheduler(config, folder)
        if scheduler is not None:
            pipeline.register_modules(scheduler=scheduler)
        fuse_adapter(pipeline, config)
    return pipeline


def load_part(config: ModelConfig, name: str) -> nn.Module:
    """One network again, exactly as `assemble` has it in the pipeline: from its folder, a part
    given beside it or a single file, with the adapter fused.

    On the CPU, in `config.dtype` and evaluation mode. From a folder of safetensors in that type
    its parameters are the mapped file's own memory. `model.keep` marks nothing here.

    Raises:
        UserError: it cannot be loaded, or is no network of the pipeline.
    """
    folder = check_folder(config)
    index = pipeline_index(folder)
    dtype = getattr(torch, config.dtype)
    parts = given_parts(config, folder, index)
    with told_as_of(config):
        if config.lora is not None:
            part = getattr(assemble(config), name, None)
        elif name in parts:
            part = read_part(parts[name], dtype=dtype)
        elif name not in index:
            part = None
        elif (file := single_file(config.path)) is not None:
            kind: Any = part_class(index[name], where=str(folder))
            beside = is_lacking(contents(file), name, kind)
            if hasattr(kind, "from_single_file") and not beside:
                part = kind.from_single_file(
                    str(file),
                    config=str(folder),
                    subfolder=name,
                    torch_dtype=dtype,
                    local_files_only=True,
                )
            else:  # a text encoder, of which diffusers keeps how to read it to itself
                part = getattr(assemble(config), name, None)
        else:
            part = read_folder(
                part_class(index[name], where=str(folder)), folder / name, dtype=dtype
            )
    if not isinstance(part, nn.Module):
        raise UserError(f"model.path={config.path}: its pipeline has no network {name!r}")
    return part.eval()


def _beside(
    file: Path, folder: Path, index: Mapping[str, Any], *, but: Collection[str], dtype: torch.dtype
) -> dict[str, Any]:
    """The networks that a single file lacks, from the folder of its configs."""
    held, found = contents(file), {}
    for part in network_folders(folder):
        kind = part_class(index[part.name], where=str(folder))
        if part.name not in but and is_lacking(held, part.name, kind) and has_weights(part):
            found[part.name] = read_folder(kind, part, dtype=dtype)
    return found


@contextmanager
def told_as_of(config: ModelConfig) -> Iterator[None]:
    """What diffusers or transformers raise of a model's files, in one line."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        yield
    except UserError:
        raise
    except SingleFileComponentError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path={config.path}: {first} Give model.configs a folder that has it, or "
            "model.parts.NAME=FOLDER"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"model.path={config.path}: diffusers cannot load it ({first})") from error
