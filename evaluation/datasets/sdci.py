"""`sdci`: DCI's photographs with captions that fit a text encoder, as SVDQuant evaluates on them.

Source: Urbanek et al. 2023 (arXiv:2312.08578); Li et al. 2024 (arXiv:2411.05007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.datasets.prompt_lists import yaml_texts
from evaluation.datasets.published_data import Place, PublishedData, read_once
from evaluation.outside_files import OutsideFile

LIST, PICTURES = "sDCI.yaml", "sDCI.gz"
_FOLDER = "sDCI"
_HUB = "https://huggingface.co/datasets/mit-han-lab/svdquant-datasets"


@dataclass(kw_only=True)
class Sdci(PublishedData):
    """`sDCI.yaml` is {id: prompt}; pictures are `id.jpg`, in a compressed tar."""

    def all_ids(self) -> Sequence[str]:
        return list(self._texts())

    def text_of(self, name: str) -> str:
        return self._texts()[name]

    def image_of(self, name: str) -> str:
        return f"{name}.jpg"

    def places(self) -> Sequence[Place]:
        # unpacked first: a compressed tar is read from its beginning for each step back
        return (
            Place(path=self.folder / _FOLDER),
            Place(path=self.folder / PICTURES, inside=("", f"{_FOLDER}/")),
        )

    def distribution(self) -> Sequence[OutsideFile]:
        return [
            self.own_file(name, origin=f"{_HUB}/resolve/main/{name}") for name in (LIST, PICTURES)
        ]

    def _texts(self) -> Mapping[str, str]:
        return read_once(self.folder / LIST, yaml_texts)
