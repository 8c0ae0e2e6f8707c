"""`geneval`: GenEval, 553 prompts of one or two objects, four images each; no pictures.

Source: Ghosh et al. 2023 (arXiv:2310.11513).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.datasets.published_data import PublishedData, read_once
from evaluation.outside_files import OutsideFile, json_lines

LIST = "evaluation_metadata.jsonl"
_ORIGIN = "https://github.com/djghosh13/geneval/blob/main/prompts/evaluation_metadata.jsonl"


@dataclass(kw_only=True)
class GenEval(PublishedData):
    """Lines {tag, include, exclude, prompt}; the id is the line's number from 00000, as there.

    With several `samples` the images of prompt 00007 are 00007-0, 00007-1 and so on, each with
    noise of its own; `evaluation_prompts` counts images: 2,212 are all.
    """

    samples: int = 4  # images a prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"dataset.samples={self.samples}; give at least 1")

    @property
    def images_a_prompt(self) -> int:
        return self.samples

    def all_ids(self) -> Sequence[str]:
        return list(self._rows())

    def text_of(self, name: str) -> str:
        return str(self._rows()[name]["prompt"])

    def distribution(self) -> Sequence[OutsideFile]:
        return [self.own_file(LIST, origin=f"{_ORIGIN} (MIT)")]

    def checks_of(self, prompt_id: str) -> dict[str, Any]:
        """What a checker looks for in an image: its line of the file, by the image's id."""
        return self._rows()[prompt_id.partition("-")[0]]

    def _rows(self) -> dict[str, dict[str, Any]]:
        return read_once(self.folder / LIST, _read)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, (line, row) in enumerate(json_lines(path)):
        if not isinstance(row.get("prompt"), str) or not isinstance(row.get("include"), list):
            raise ValueError(f"{path}:{line}: has no prompt, a text, and include, a list")
        rows[f"{number:05d}"] = row
    return rows
