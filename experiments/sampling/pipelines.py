"""Loading diffusers pipelines, unmodified, and their denoisers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.assembled import assemble
from experiments.sampling.model_folder import DENOISERS
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

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline = assemble(config)
    pipeline.set_progress_bar_config(disable=True)
    check_values_of(pipeline, path=config.path)
    keep_layers(get_denoiser(pipeline), config)
    return pipeline.to(device)


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
