"""Checkpoints of one file, in the layout of a model's own authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.run_config import SINGLE_FILES
from experiments.errors import UserError
from experiments.store.paths import resolve_path

_WHOLE = "model.diffusion_model."  # how names of a Stable Diffusion's tensors begin
_UNKNOWN = "v1"  # what diffusers takes every checkpoint for that it does not know
_VAE = ("first_stage_model.", "vae.", "encoder.", "decoder.")


def single_file(path: str) -> Path | None:
    """The checkpoint that a path names; None of a folder or hub id."""
    found = resolve_path(path)
    return found if found.is_file() and found.suffix in SINGLE_FILES else None


def taken_for(file: Path) -> str:
    """The hub id of the pipeline that diffusers takes a checkpoint for, from its tensors alone.

    Raises:
        UserError: it cannot be told.
    """
    from diffusers.loaders import single_file_utils as known

    shapes = contents(file)
    try:
        kind = known.infer_diffusers_model_type(shapes)
        if kind == _UNKNOWN and not any(name.startswith(_WHOLE) for name in shapes):
            raise KeyError(kind)
        return str(known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
    except (LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"model.path={file}: it cannot be told what it is a checkpoint of; give model.configs="
            "FOLDER, a pipeline's folder in diffusers' format (what the file holds may lack there)"
        ) from error


def contents(file: Path) -> Mapping[str, Any]:
    """What stands for each tensor of a checkpoint: it has its shape.

    Raises:
        UserError: it cannot be read.
    """
    import pickle

    from diffusers.loaders.single_file_utils import load_single_file_checkpoint
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix != ".safetensors":
            return dict(load_single_file_checkpoint(str(file), local_files_only=True))
        with safe_open(file, framework="pt") as tensors:
            return {
                name: _Shaped(tensors.get_slice(name).get_shape())
                for name in tensors.keys()  # noqa: SIM118 - it is no dict
            }
    except (SafetensorError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"{file} cannot be read as a checkpoint ({first}); copy it again"
        ) from error


def is_lacking(held: Mapping[str, Any], name: str, kind: type) -> bool:
    """Whether a checkpoint has nothing of a part, so that it comes from the folder of configs."""
    from diffusers.loaders.single_file_utils import (
        is_clip_model_in_single_file,
        is_t5_in_single_file,
    )
    from transformers import PreTrainedModel

    if issubclass(kind, PreTrainedModel):
        clip, t5 = is_clip_model_in_single_file(kind, held), is_t5_in_single_file(held)
        return not (t5 if "T5" in kind.__name__ else clip)
    return name == "vae" and not any(key.startswith(_VAE) for key in held)


class _Shaped:
    """Stands for a tensor of which the shape alone is looked at."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
