"""`prompts`: a JSON-lines file of one's own, and a folder of true images if there is one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from evaluation.datasets.interface import FILES, SPLITS, Argument, Prompt
from evaluation.datasets.picture_files import PictureFile, check_present, check_readable
from evaluation.outside_files import json_lines

_OWN = {"id", "prompt", "split"}
_WRITE = '{"id": "...", "prompt": "...", "split": "evaluation" or "calibration"}'


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

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        if self.images is None:
            return {}
        return {p.id: PictureFile(path=Path(self.images, f"{p.id}.png")) for p in prompts}

    def check_images(self, prompts: Sequence[Prompt]) -> None:
        pictures = self.image_files(prompts)
        check_present(pictures, setting=f"dataset.images={self.images}")
        check_readable(pictures.values())

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        raise ValueError(f"dataset {self.name} draws no images")


def _read(path: Path) -> dict[str, list[Prompt]]:
    """All prompts of a file by split, in its order."""
    listed: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for number, row in json_lines(path):
        where = f"{path}:{number}"
        # what brings other arguments may do without a prompt, as a class does
        for key in ("id", "prompt") if "prompt" in row or set(row) <= _OWN else ("id",):
            if not isinstance(row.get(key), str):
                raise ValueError(
                    f"{where}: {key!r} is {_said(row, key)}, not a text; each line is {_WRITE}"
                )
        split = row.get("split", "evaluation")
        if split not in SPLITS:
            raise ValueError(f"{where}: split {split!r}; splits are {' or '.join(SPLITS)}")
        if row["id"] in seen:
            raise ValueError(f"{where}: id {row['id']!r} is there already; ids are unique")
        try:
            prompt = Prompt(
                id=row["id"],
                text=row.get("prompt"),
                files=_files(row, path.parent),
                arguments=_arguments(row),
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        seen.add(prompt.id)
        listed[split].append(prompt)
    return listed


def _files(row: dict[str, Any], beside: Path) -> tuple[tuple[str, PictureFile], ...]:
    """The pictures that a row gives to the pipeline's call; relative to the file of prompts."""
    for name in FILES:
        if name in row and not isinstance(row[name], str):
            raise ValueError(f"{name!r} is {_said(row, name)}, not the path of a picture")
    given = [(name, beside / row[name]) for name in FILES if name in row]
    for name, path in given:
        if not path.is_file():
            raise ValueError(f"{name!r}: {path} is no file")
    return tuple((name, PictureFile(path=path)) for name, path in given)


def _arguments(row: dict[str, Any]) -> tuple[tuple[str, Argument], ...]:
    """All other fields: arguments of the pipeline's call, which knows their names."""
    given = {key: value for key, value in row.items() if key not in (*_OWN, *FILES)}
    for key, value in given.items():
        if not isinstance(value, Argument) or (isinstance(value, float) and not isfinite(value)):
            raise ValueError(f"{key!r} is {_said(row, key)}, neither a text nor a number")
    return tuple(sorted(given.items()))


def _said(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return "missing"
    shown = repr(row[key])
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
