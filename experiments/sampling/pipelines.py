"""Loading diffusers pipelines, unmodified, and knowing which weights they have."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.store.folders import file_digest, write_text
from experiments.store.paths import ROOT

log = logging.getLogger(__name__)

DENOISERS = ("transformer", "unet")  # attribute names that diffusers gives the denoiser
_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model", ".gz")


def resolve_path(path: str) -> Path:
    """A folder as given, else below the project's root."""
    given = Path(path).expanduser()
    return given if given.exists() or given.is_absolute() else ROOT / given


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        UserError: a device that this machine lacks.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r}; use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}, but torch sees no CUDA device; use device=cpu")
    return chosen


def check_folder(config: ModelConfig) -> Path:
    """The model's folder.

    Raises:
        UserError: it is not there, or is no diffusers pipeline with a denoiser.
    """
    folder = resolve_path(config.path)
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(
            f"model.path={config.path}: no such folder; give a folder that "
            "DiffusionPipeline.save_pretrained wrote (download a hub model to one beforehand)"
        )
    if not index.is_file():
        raise UserError(
            f"model.path={config.path} is no diffusers pipeline: it has no model_index.json; give "
            "the folder that DiffusionPipeline.save_pretrained wrote"
        )
    try:
        parts = json.loads(index.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{index} is not JSON ({error})") from error
    if not any(parts.get(name, [None])[0] for name in DENOISERS):
        raise UserError(
            f"model.path={config.path}: its model_index.json names no {' or '.join(DENOISERS)}"
        )
    return folder


def check_weights(folder: Path) -> None:
    """Every part of a pipeline that has a network has its weights, every shard of them.

    Raises:
        UserError: names what is missing; nothing is fetched.
    """
    parts = json.loads((folder / "model_index.json").read_text())
    for name, kind in parts.items():
        part = folder / name
        if name.startswith("_") or not isinstance(kind, list) or kind[0] is None:
            continue
        if not part.is_dir():
            raise UserError(f"{folder}: its model_index.json names {name}, and {part} is missing")
        if not (part / "config.json").is_file():
            continue  # a tokenizer or a scheduler
        shards = {
            shard
            for index in part.glob("*.index.json")
            for shard in json.loads(index.read_text())["weight_map"].values()
        }
        lost = sorted(shard for shard in shards if not (part / shard).is_file())
        if lost:
            raise UserError(f"{part}: {', '.join(lost)} is missing; copy the whole model there")
        if not any(part.glob("*.safetensors")) and not any(part.glob("*.bin")):
            raise UserError(
                f"{part} has a config.json and no weights (*.safetensors or *.bin); copy the "
                "whole model there beforehand"
            )


def load_pipeline(config: ModelConfig, *, device: torch.device) -> Any:
    """The pipeline in evaluation mode on the device, with its progress bar off."""
    import diffusers
    import transformers
    from diffusers import DiffusionPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = check_folder(config)
    dtype = getattr(torch, config.dtype)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"model.path={config.path}: diffusers cannot load it ({first})") from error
    pipeline.set_progress_bar_config(disable=True)
    _check_call(config, pipeline)
    return pipeline.to(device)


def _check_call(config: ModelConfig, pipeline: Any) -> None:
    allowed = inspect.signature(type(pipeline).__call__).parameters
    for key in config.call:
        if key not in allowed:
            raise UserError(
                f"model.call.{key}: {type(pipeline).__name__} takes no such argument; it takes "
                f"{', '.join(name for name in allowed if name != 'self')}"
            )


def denoiser_name(pipeline: Any) -> str:
    for name in DENOISERS:
        if getattr(pipeline, name, None) is not None:
            return name
    raise UserError(f"{type(pipeline).__name__} has no {' or '.join(DENOISERS)}")


def get_denoiser(pipeline: Any) -> nn.Module:
    denoiser = getattr(pipeline, denoiser_name(pipeline))
    assert isinstance(denoiser, nn.Module)
    return denoiser


def set_denoiser(pipeline: Any, denoiser: nn.Module) -> None:
    pipeline.register_modules(**{denoiser_name(pipeline): denoiser})


def weights_hash(folder: Path, *, cache: Path | None = None) -> str:
    """Identifies a pipeline folder by the contents of its configs and weights.

    Args:
        cache: where the files' checksums are kept, by path, size and time, so that a large model
            is read once.
    """
    known: dict[str, str] = {}
    if cache is not None and cache.exists():
        known = json.loads(cache.read_text())
    state = hashlib.sha256()
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix not in _WEIGHTS:
            continue
        status = path.stat()
        label = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        found[label] = known.get(label) or file_digest(path)
        state.update(f"{path.relative_to(folder)}\0{found[label]}\0".encode())
    if cache is not None and not found.keys() <= known.keys():
        write_text(cache, json.dumps(known | found, indent=0) + "\n")
    return state.hexdigest()[:16]
