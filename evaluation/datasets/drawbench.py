"""`drawbench`: DrawBench, 200 prompts in eleven categories; no pictures.

Source: Saharia et al. 2022 (arXiv:2205.11487).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.datasets.prompt_lists import ListedPrompt, read_prompt_list
from evaluation.datasets.published_data import PublishedData, read_once
from evaluation.outside_files import OutsideFile

LIST = "DrawBench.csv"
_SHEET = "https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY"


@dataclass(kw_only=True)
class DrawBench(PublishedData):
    """Columns Prompts and Category; the id is the row's number from 00000."""

    def all_ids(self) -> Sequence[str]:
        return list(self._listed())

    def text_of(self, name: str) -> str:
        return self._listed()[name].text

    def distribution(self) -> Sequence[OutsideFile]:
        return [self.own_file(LIST, origin=f"{_SHEET}/gviz/tq?tqx=out:csv (0.02 MB)")]

    def _listed(self) -> Mapping[str, ListedPrompt]:
        return read_once(self.folder / LIST, read_prompt_list)
