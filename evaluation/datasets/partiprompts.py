"""`partiprompts`: PartiPrompts (P2), 1,632 prompts in twelve categories; no pictures.

Source: Yu et al. 2022 (arXiv:2206.10789).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.datasets.prompt_lists import ListedPrompt, read_prompt_list
from evaluation.datasets.published_data import PublishedData, read_once
from evaluation.outside_files import OutsideFile

LIST = "PartiPrompts.tsv"
_ORIGIN = "https://raw.githubusercontent.com/google-research/parti/main/PartiPrompts.tsv"


@dataclass(kw_only=True)
class PartiPrompts(PublishedData):
    """Columns Prompt, Category, Challenge and Note; the id is the row's number from 00000."""

    def all_ids(self) -> Sequence[str]:
        return list(self._listed())

    def text_of(self, name: str) -> str:
        return self._listed()[name].text

    def distribution(self) -> Sequence[OutsideFile]:
        return [self.own_file(LIST, origin=f"{_ORIGIN} (0.12 MB)")]

    def _listed(self) -> Mapping[str, ListedPrompt]:
        return read_once(self.folder / LIST, read_prompt_list)
