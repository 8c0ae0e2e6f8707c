"""Everything about a model that can be known to be wrong before its weights are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.errors import UserError
from experiments.sampling.adapters import check_adapter
from experiments.sampling.model_call import check_batch, check_call, check_labels
from experiments.sampling.model_folder import (
    check_folder,
    check_weights,
    has_weights,
    network_folders,
    part_config,
    pipeline_index,
)
from experiments.sampling.model_parts import denoiser_folders, given_parts, part_class
from experiments.sampling.model_shapes import (
    check_layers,
    check_sides,
    check_tensors,
    empty_denoiser,
    keep_layers,
)
from experiments.sampling.pipeline_classes import pipeline_class
from experiments.sampling.schedulers import chosen_scheduler
from experiments.sampling.single_files import contents, is_lacking, single_file

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig, RunConfig


def check_model(model: ModelConfig, *, prompts: Sequence[Prompt]) -> nn.Module | None:
    """Refuses a model that cannot be run as it is asked for.

    Args:
        prompts: all of the run, with what each brings to the pipeline's call; none where the data
            set could not be read, which is said of it.

    Returns:
        What is quantized, without weights, where its classes are known.

    Raises:
        UserError: a folder that is no pipeline or lacks weights, a call that the harness cannot
            make, sides that do not fit.
    """
    folder = check_folder(model)
    index = pipeline_index(folder)
    kind = pipeline_class(index, path=model.path, name=model.pipeline, given=model.parts)
    parts = given_parts(model, folder, index)
    one_file = single_file(model.path)
    if one_file is None:
        check_weights(folder, besides=parts)
    else:
        _check_file(one_file, folder, index, besides=parts)
    if prompts:
        check_call(model, kind, prompts=prompts)
    check_sides(model, folder)
    chosen_scheduler(model, folder)
    check_adapter(model, kind)
    denoiser = empty_denoiser(model, folder)
    if denoiser is None:
        return None
    if one_file is None:
        check_tensors(model, folder, denoiser)
    keep_layers(denoiser, model)
    return denoiser


def _check_file(
    file: Path, folder: Path, index: Mapping[str, Any], *, besides: Collection[str]
) -> None:
    """What a single file lacks is in the folder of its configs."""
    held = contents(file)
    for part in network_folders(folder):
        if part.name in besides or has_weights(part):
            continue
        if is_lacking(held, part.name, part_class(index[part.name], where=str(folder))):
            raise UserError(
                f"model.path={file}: it holds no {part.name}, and {part} has no weights either; "
                f"give model.configs a folder that has them, or model.parts.{part.name}=FOLDER"
            )


def check_prompts(model: ModelConfig, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts that a checked model's call cannot be given together, or has no class for.

    Raises:
        UserError: names the prompt, or what the call takes one of.
    """
    folder = check_folder(model)
    index = pipeline_index(folder)
    kind = pipeline_class(index, path=model.path, name=model.pipeline, given=model.parts)
    check_batch(model, kind, prompts=prompts)
    check_labels(prompts, _class_names(index), classes=_count_of_classes(model, folder))


def _class_names(index: Mapping[str, Any]) -> set[str]:
    """What a pipeline calls its classes: several names of one stand in one text."""
    named = index.get("id2label")
    texts = named.values() if isinstance(named, dict) else ()
    return {part.strip() for text in texts for part in str(text).split(",")}


def _count_of_classes(model: ModelConfig, folder: Path) -> int | None:
    configs = [part_config(part) for part in denoiser_folders(model, folder).values()]
    keys = ("num_embeds_ada_norm", "num_class_embeds")
    counts = [config.get(key) for config in configs for key in keys]
    return next((count for count in counts if isinstance(count, int)), None)


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
