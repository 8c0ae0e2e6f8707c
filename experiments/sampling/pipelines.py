"""Loading diffusers pipelines, unmodified, and their denoisers."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.model_folder import DENOISERS, check_folder

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

log = logging.getLogger(__name__)


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
