"""`prompts`: a JSON-lines file of one's own, and a folder of true images if there is one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evaluation.datasets.interface import SPLITS, Prompt
from evaluation.images import write_png


@dataclass(kw_only=True)
class PromptsFile:
    """The first prompts of each split of a file; with a `calibration_seed`, drawn by it."""

    name: str
    path: str  # of lines {"id": ..., "prompt": ..., "split": "evaluation" or "calibration"}
    images: str | None  # folder of true images named by prompt id
    evaluation_prompts: int
    calibration_prompts: int
    seed: int
    calibration_seed: int | None  # null: the first calibration prompts of the file

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        counts = {"evaluation": self.evaluation_prompts, "calibration": self.calibration_prompts}
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(f"dataset.path={self.path}: no such file; give a JSON-lines file")
        listed = _read(path)
        few = {split: len(listed[split]) for split in SPLITS if len(listed[split]) < counts[split]}
        if few:
            said = ", ".join(f"{n} {split} prompts of {counts[split]}" for split, n in few.items())
            keys = " and ".join(f"dataset.{split}_prompts" for split in few)
            raise ValueError(f"{path} has {said} asked for; add prompts or set {keys}")
        if self.calibration_seed is not None:
            random.Random(self.calibration_seed).shuffle(listed["calibration"])
        return {split: tuple(listed[split][: counts[split]]) for split in SPLITS}

    def has_images(self) -> bool:
        return self.images is not None

    def image_files(self, prompts: Sequence[Prompt]) -> Sequence[Path]:
        return [] if self.images is None else [Path(self.images, f"{p.id}.png") for p in prompts]

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        for path in self.image_files(prompts):
            if not path.is_file():
                raise ValueError(f"dataset.images={self.images}: {path.name} is missing")
            with Image.open(path) as image:
                write_png(folder / path.name, image.convert("RGB"))


def _read(path: Path) -> dict[str, list[Prompt]]:
    """All prompts of a file by split, in its order."""
    listed: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt = Prompt(id=str(row["id"]), text=str(row["prompt"]))
            split = str(row.get("split", "evaluation"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: cannot read this line ({error!r}); each is "
                '{"id": "...", "prompt": "...", "split": "evaluation" or "calibration"}'
            ) from error
        if split not in SPLITS or prompt.id in seen or "/" in prompt.id:
            raise ValueError(
                f"{path}:{number}: id {prompt.id!r}, split {split!r}; ids are unique and without "
                f"'/', splits are {' or '.join(SPLITS)}"
            )
        seen.add(prompt.id)
        listed[split].append(prompt)
    return listed
