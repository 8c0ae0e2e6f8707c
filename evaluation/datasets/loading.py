"""The prompts of a run, checked, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.datasets.interface import SPLITS, Dataset, Prompt


@dataclass(frozen=True, kw_only=True)
class LoadedDataset:
    """The prompts of a run, and the data set that they are from."""

    name: str
    evaluation: tuple[Prompt, ...]
    calibration: tuple[Prompt, ...]
    config: Dataset


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Identifies a list of prompts: ids, texts and order."""
    text = json.dumps([[prompt.id, prompt.text] for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_dataset(config: Dataset) -> LoadedDataset:
    """The prompts of each split.

    Raises:
        ValueError: what the data set itself raises; it gives other prompts than were asked for; an
            id is there twice; or a prompt is in both splits.
    """
    splits = config.prompts()
    _check_counts(config, splits)
    shared = {p.text for p in splits["evaluation"]} & {p.text for p in splits["calibration"]}
    if shared:
        raise ValueError(
            f"dataset {config.name}: {len(shared)} prompts are in both splits, for example "
            f"{sorted(shared)[0]!r}; calibrate on other prompts than those you evaluate on"
        )
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
