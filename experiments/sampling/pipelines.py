"""Loading diffusers pipelines, unmodified, and their denoisers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.errors import UserError
from experiments.sampling.assembled import assemble
from experiments.sampling.model_folder import DENOISERS, is_denoiser
from experiments.sampling.model_shapes import check_values_of, keep_layers
from segquant.core.several import called_parts, together

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

log = logging.getLogger(__name__)


def load_pipeline(
    config: ModelConfig, *, device: torch.device, instead: Mapping[str, Any] | None = None
) -> Any:
    """The pipeline in evaluation mode on the device, with its progress bar off.

    A safety checker is left out: it would paint images black, in every row alike.

    Args:
        instead: networks without weights by name, in the place of the pipeline's own.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipeline = assemble(config, instead=instead)
    pipeline.set_progress_bar_config(disable=True)
    check_values_of(pipeline, path=config.path, weightless=instead or ())
    keep_layers(get_denoiser(pipeline, config.denoisers), config)
    return pipeline.to(device)


def denoiser_names(pipeline: Any, names: Sequence[str] | None = None) -> list[str]:
    """The names given, or of every transformer and UNet of the pipeline.

    Raises:
        UserError: it has none, or not that one.
    """
    there = {name: part for name, part in pipeline.components.items() if part is not None}
    chosen = sorted(filter(is_denoiser, there)) if names is None else list(names)
    lost = [name for name in chosen if not isinstance(there.get(name), nn.Module)]
    if lost or not chosen:
        what = ", ".join(lost) or " or ".join(DENOISERS)
        raise UserError(f"{type(pipeline).__name__} has no network {what} to be quantized")
    return chosen


def get_denoiser(pipeline: Any, names: Sequence[str] | None = None) -> nn.Module:
    """The denoiser of that name; several in a `Denoisers`, each the pipeline's own module."""
    return together({name: getattr(pipeline, name) for name in denoiser_names(pipeline, names)})


def set_denoiser(pipeline: Any, denoiser: nn.Module, names: Sequence[str] | None = None) -> None:
    """Puts what `get_denoiser` gives, or the like of it, where the pipeline calls it."""
    put(denoiser, places=places_of(pipeline, names))


Places = dict[str, list[tuple[Any, str]]]  # name of a denoiser -> pipelines, and their name for it


def places_of(pipeline: Any, names: Sequence[str] | None = None) -> Places:
    """Where each denoiser is called: a combined pipeline runs two others, which have it too."""
    places: Places = {}
    for name in denoiser_names(pipeline, names):
        part = getattr(pipeline, name)
        places[name] = [(pipeline, name)] + [
            (within, key)
            for within in _pipelines_within(pipeline)
            for key, module in within.components.items()
            if module is part
        ]
    return places


def put(denoiser: nn.Module | None, *, places: Places) -> None:
    """Puts a denoiser, or each of several, where it is called; None takes away what is there."""
    parts = {} if denoiser is None else called_parts(denoiser)
    for name, where in places.items():
        for pipeline, key in where:
            pipeline.register_modules(**{key: parts.get(name, parts.get(""))})


def _pipelines_within(pipeline: Any) -> list[Any]:
    from diffusers import DiffusionPipeline

    return [value for value in vars(pipeline).values() if isinstance(value, DiffusionPipeline)]
