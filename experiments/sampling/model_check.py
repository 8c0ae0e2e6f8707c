"""Everything about a model that can be known to be wrong before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from experiments.errors import UserError
from experiments.sampling.model_call import check_call, pipeline_class
from experiments.sampling.model_folder import check_folder, check_weights, pipeline_index
from experiments.sampling.model_shapes import (
    check_layers,
    check_sides,
    check_tensors,
    empty_denoiser,
    keep_layers,
)

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig, RunConfig


def check_model(model: ModelConfig, *, pictures: Sequence[str]) -> nn.Module | None:
    """Refuses a model that cannot be run as it is asked for.

    Args:
        pictures: names of those that each prompt brings to the pipeline's call.

    Returns:
        What is quantized, without weights, where its classes are known.

    Raises:
        UserError: a folder that is no pipeline or lacks weights, a call that the harness cannot
            make, sides that do not fit.
    """
    folder = check_folder(model)
    check_weights(folder)
    kind = pipeline_class(pipeline_index(folder), path=model.path)
    check_call(model, kind, pictures=pictures)
    check_sides(model, folder)
    denoiser = empty_denoiser(model, folder)
    if denoiser is None:
        return None
    check_tensors(model, folder, denoiser)
    keep_layers(denoiser, model)
    return denoiser


def misfits(quantized: Sequence[RunConfig], denoiser: nn.Module | None) -> list[UserError]:
    """Why cells do not fit a model's layers, an error for each that does not."""
    if denoiser is None:
        return []
    known: dict[tuple[str, int], UserError | None] = {}
    found = []
    for config in quantized:
        key = (repr(config.bits), getattr(config.method, "rank", 0))
        if key not in known:
            try:
                check_layers(config, denoiser)
                known[key] = None
            except UserError as error:
                known[key] = error
        found.append(known[key])
    return [error for error in found if error is not None]
