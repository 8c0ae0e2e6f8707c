"""Checkpoints of one file, in the layout of a model's own authors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UserError
from experiments.store.paths import resolve_path

SINGLE_FILES = (".safetensors", ".ckpt")
_WHOLE = "model.diffusion_model."  # how names of a Stable Diffusion's tensors begin
_UNKNOWN = "v1"  # what diffusers takes every checkpoint for that it does not know


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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {
                name: _Shaped(tensors.get_slice(name).get_shape())
                for name in tensors.keys()  # noqa: SIM118 - it is no dict
            }
        kind = known.infer_diffusers_model_type(shapes)
        if kind == _UNKNOWN and not any(name.startswith(_WHOLE) for name in shapes):
            raise KeyError(kind)
        return str(known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])
    except (SafetensorError, OSError, LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"model.path={file}: it cannot be told what it is a checkpoint of; give model.configs="
            "FOLDER, a pipeline's folder in diffusers' format (what the file holds may lack there)"
        ) from error


class _Shaped:
    """Stands for a tensor of which the shape alone is looked at."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
