"""Loading diffusers pipelines, unmodified, and their denoisers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.model_folder import (
    DENOISERS,
    SAFETY_CHECKER,
    check_folder,
    pipeline_index,
    variant_of,
)
from experiments.sampling.model_shapes import check_values_of, keep_layers

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

log = logging.getLogger(__name__)


def load_pipeline(config: ModelConfig, *, device: torch.device) -> Any:
    """The pipeline in evaluation mode on the device, with its progress bar off.

    A safety checker is left out: it would paint images black, in every row alike.
    """
    import diffusers
    import transformers
    from diffusers import DiffusionPipeline

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = check_folder(config)
    left_out = {SAFETY_CHECKER: None} if SAFETY_CHECKER in pipeline_index(folder) else {}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=getattr(torch, config.dtype),
            local_files_only=True,
            variant=variant_of(folder),
            **left_out,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"model.path={config.path}: diffusers cannot load it ({first})") from error
    pipeline.set_progress_bar_config(disable=True)
    check_values_of(pipeline, path=config.path)
    keep_layers(get_denoiser(pipeline), config)
    return pipeline.to(device)


def read_denoiser(config: ModelConfig, name: str) -> nn.Module:
    """A denoiser again as `load_pipeline` has it, on the CPU: its weights, read from disk."""
    import diffusers

    folder = check_folder(config)
    kind = getattr(diffusers, pipeline_index(folder)[name][1])
    denoiser: nn.Module = kind.from_pretrained(
        folder / name,
        torch_dtype=getattr(torch, config.dtype),
        local_files_only=True,
        variant=variant_of(folder),
    )
    keep_layers(denoiser, config)
    return denoiser


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
