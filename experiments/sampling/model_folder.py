"""A model's folder in diffusers' format: is it one, and is everything in it?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import UserError
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

DENOISERS = ("transformer", "unet")  # attribute names that diffusers gives the denoiser


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
