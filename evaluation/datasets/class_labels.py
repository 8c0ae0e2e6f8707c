"""`labels`: noise alone, and a class for each where the model is class-conditional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.datasets.interface import CLASS_LABELS, SPLITS, Prompt
from evaluation.datasets.picture_files import PictureFile


@dataclass(kw_only=True)
class ClassLabels:
    """Labels drawn by the seed, each with noise of its own; no id is in both splits."""

    name: str
    num_classes: int | None  # null: no label at all, for unconditional models
    evaluation_prompts: int
    calibration_prompts: int
    seed: int
    calibration_seed: int | None  # null is `seed`

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}; give at least 1, or null for none")

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        own = self.seed if self.calibration_seed is None else self.calibration_seed
        return {
            "evaluation": self._drawn("evaluation", self.evaluation_prompts, seed=self.seed),
            "calibration": self._drawn("calibration", self.calibration_prompts, seed=own),
        }

    def has_images(self) -> bool:
        return False

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        return {}

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        raise ValueError(f"dataset {self.name} has no images")

    def _drawn(self, split: str, count: int, *, seed: int) -> tuple[Prompt, ...]:
        ids = [f"{split}-{seed}-{number:05d}" for number in range(count)]
        if self.num_classes is None:
            return tuple(Prompt(id=name, text=None) for name in ids)
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        labels = rng.integers(self.num_classes, size=count).tolist()
        return tuple(
            Prompt(id=name, text=None, arguments=((CLASS_LABELS, label),))
            for name, label in zip(ids, labels, strict=True)
        )
