"""The prompts of a run, checked, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.datasets.interface import FILES, SPLITS, Dataset, Prompt
from evaluation.datasets.picture_files import PictureFile, check_one_size


@dataclass(frozen=True, kw_only=True)
class LoadedDataset:
    """The prompts of a run, and the data set that they are from."""

    name: str
    evaluation: tuple[Prompt, ...]
    calibration: tuple[Prompt, ...]
    config: Dataset


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Identifies a list of prompts: ids, texts, pictures' contents, other arguments, and order."""
    text = json.dumps(
        [[p.id, p.text, *_contents(p), *(list(pair) for pair in p.arguments)] for p in prompts]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _contents(prompt: Prompt) -> list[list[str]]:
    """Name and identity of each picture; nothing where there is none."""
    return [[name, picture.identity()] for name, picture in prompt.files]


def true_images_of(dataset: LoadedDataset) -> dict[str, PictureFile]:
    """Where the true image of each evaluation prompt lies, in their order; empty: they are drawn.

    Raises:
        ValueError: what the data set itself raises; it names no picture of a prompt.
    """
    found = dataset.config.image_files(dataset.evaluation)
    if not found:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(
            f"dataset {dataset.name}: image_files() gave {type(found).__name__}; it maps each "
            "prompt's id to a PictureFile"
        )
    without = [prompt.id for prompt in dataset.evaluation if prompt.id not in found]
    if without:
        raise ValueError(f"dataset {dataset.name}: image_files() has none of {without[0]!r}")
    return {prompt.id: found[prompt.id] for prompt in dataset.evaluation}


def check_pictures_of(dataset: LoadedDataset) -> None:
    """Reads every picture that a run will need: a damaged one is found before anything is sampled.

    Raises:
        ValueError: one is missing, damaged or too large, or, of those that calls take, of another
            size than its like.
    """
    for name in FILES:
        prompts = (*dataset.evaluation, *dataset.calibration)
        given = [files[name] for p in prompts if name in (files := dict(p.files))]
        check_one_size([picture for picture in given if picture.drawn is None])
        for picture in given:
            if picture.drawn is not None:  # of any size: a ControlNet's pipeline resizes each
                picture.glance()
    if dataset.config.has_images() and (check := getattr(dataset.config, "check_images", None)):
        check(dataset.evaluation)


def load_dataset(config: Dataset) -> LoadedDataset:
    """The prompts of each split.

    Raises:
        ValueError: what the data set itself raises; it gives other prompts than were asked for; an
            id is there twice; or a prompt is in both splits.
    """
    splits = config.prompts()
    _check_counts(config, splits)
    _check_names(config, splits)
    _check_disjoint(config, splits)
    return LoadedDataset(
        name=config.name,
        evaluation=splits["evaluation"],
        calibration=splits["calibration"],
        config=config,
    )


def _check_counts(config: Dataset, splits: dict[str, tuple[Prompt, ...]]) -> None:
    """What a data set of one's own may get wrong."""
    if set(splits) != set(SPLITS):
        raise ValueError(
            f"dataset {config.name}: prompts() has {', '.join(sorted(splits)) or 'nothing'}; "
            f"it must have {' and '.join(SPLITS)}"
        )
    for split in SPLITS:
        asked = config.evaluation_prompts if split == "evaluation" else config.calibration_prompts
        ids = {prompt.id for prompt in splits[split]}
        if len(splits[split]) != asked or len(ids) != asked:
            raise ValueError(
                f"dataset {config.name}: {len(splits[split])} {split} prompts with {len(ids)} "
                f"different ids; dataset.{split}_prompts={asked} asks for as many"
            )


def _check_names(config: Dataset, splits: dict[str, tuple[Prompt, ...]]) -> None:
    """A call of the pipeline gets an argument for each of its prompts, or for none."""
    first, *others = [prompt for split in SPLITS for prompt in splits[split]]
    for other in others:
        if set(other.names) != set(first.names):
            raise ValueError(
                f"dataset {config.name}: prompt {first.id!r} has {_listed(first, other)}, "
                f"{other.id!r} has {_listed(other, first)}; give every prompt the same pictures "
                "and other arguments"
            )


def _listed(prompt: Prompt, other: Prompt) -> str:
    more = sorted(set(prompt.names) - set(other.names))
    return " and ".join(more) or f"no {' or '.join(sorted(set(other.names) - set(prompt.names)))}"


def _check_disjoint(config: Dataset, splits: dict[str, tuple[Prompt, ...]]) -> None:
    """What calibrates is not evaluated on: other texts or pictures, or, of no text, other noise."""
    mine, theirs = ({_content(prompt): prompt for prompt in splits[split]} for split in SPLITS)
    shared = sorted(prompt.shown for content, prompt in mine.items() if content in theirs)
    if shared:
        raise ValueError(
            f"dataset {config.name}: {len(shared)} prompts are in both splits, for example "
            f"{shared[0]!r}; calibrate on other prompts than those you evaluate on"
        )


def _content(prompt: Prompt) -> str:
    if prompt.text is None and not prompt.files:
        return prompt.id  # the root of its noise
    return json.dumps([prompt.text, _contents(prompt)])
