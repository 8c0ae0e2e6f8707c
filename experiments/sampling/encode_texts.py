"""The text encoders of a pipeline, run over prompts without the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.sampling.assembled import assemble
from experiments.sampling.model_folder import check_folder, network_names, pipeline_index
from experiments.sampling.model_parts import given_parts, part_class
from experiments.sampling.offload import offloaded
from experiments.sampling.sample import batches, sample
from experiments.sampling.text_states import ENCODER, recording
from experiments.sampling.weightless import weightless

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig


class _Reached(Exception):  # noqa: N818 - it is no error
    """The pipeline has come to its first network: texts are encoded."""


def encode_texts(
    config: ModelConfig,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    device: torch.device,
    seed: int,
) -> int:
    """Files what every text encoder is asked and says, batch by batch, below its name.

    Denoisers and ControlNets are not loaded: each call of the pipeline ends where it comes to one.

    Returns:
        The number of distinct calls.
    """
    how = "none" if config.offload == "none" else "model"
    pipeline = assemble(config, instead=_without_weights(config, device))
    pipeline.set_progress_bar_config(disable=True)
    encoders = {
        name: part
        for name, part in pipeline.components.items()
        if name.startswith(ENCODER) and isinstance(part, nn.Module)
    }
    with offloaded(pipeline, device=device, how=how):
        for batch in batches(prompts, config.batch_size):
            with recording(encoders, folder), suppress(_Reached):
                sample(pipeline, batch, config=config, seed=seed, output_type="latent")
    return sum(1 for _ in folder.glob("*/*"))


def _without_weights(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    folder = check_folder(config)
    index = pipeline_index(folder)
    given = given_parts(config, folder, index)
    made = {}
    for name in network_names(config, index):
        part = given.get(name)
        kind = part_class(index[name], where=str(folder)) if part is None else part.kind
        made[name] = weightless(
            kind,
            folder / name if part is None else part.folder,
            dtype=getattr(torch, config.dtype),
            device=device,
            forward=_stop,
        )
    return made


def _stop(*_: Any, **__: Any) -> None:
    raise _Reached
