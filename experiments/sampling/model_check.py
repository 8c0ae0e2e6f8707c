"""Everything about a model that can be known to be wrong before its weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from experiments.sampling.model_call import check_call, pipeline_class
from experiments.sampling.model_folder import check_folder, check_weights, pipeline_index
from experiments.sampling.model_shapes import (
    check_layers,
    check_sides,
    check_tensors,
    empty_denoiser,
)

if TYPE_CHECKING:
    from evaluation.datasets.loading import LoadedDataset
    from experiments.config.run_config import ModelConfig, RunConfig


def check_model(
    model: ModelConfig, *, dataset: LoadedDataset, quantized: Sequence[RunConfig]
) -> nn.Module | None:
    """Refuses a model that cannot be run as it is asked for.

    Args:
        quantized: the cells of this model that its layers must fit.

    Returns:
        The denoiser without weights, where its class is known.

    Raises:
        UserError: a folder that is no pipeline or lacks weights, a call that the harness cannot
            make, sides or groups that do not fit.
    """
    folder = check_folder(model)
    check_weights(folder)
    kind = pipeline_class(pipeline_index(folder), path=model.path)
    check_call(model, kind, pictures=[name for name, _ in dataset.evaluation[0].files])
    check_sides(model, folder)
    denoiser = empty_denoiser(folder)
    if denoiser is None:
        return None
    check_tensors(folder, denoiser)
    alike = {(repr(c.bits), getattr(c.method, "rank", 0)): c for c in quantized}
    for config in alike.values():
        check_layers(config, denoiser)
    return denoiser
