"""`mjhq`: MJHQ-30K, 3,000 pictures of Midjourney's in each of ten categories.

Source: Li et al. 2024 (arXiv:2402.17245).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.datasets.published_data import Place, PublishedData, read_once
from evaluation.outside_files import OutsideFile, read_json_object

LIST, PICTURES = "meta_data.json", "mjhq30k_imgs.zip"
_FOLDER = "mjhq30k_imgs"
_HUB = "https://huggingface.co/datasets/playgroundai/MJHQ-30K"


@dataclass(kw_only=True)
class Mjhq(PublishedData):
    """`meta_data.json` is {id: {category, prompt}}; pictures are `category/id.jpg`."""

    def all_ids(self) -> Sequence[str]:
        return list(self._rows())

    def text_of(self, name: str) -> str:
        return self._rows()[name][0]

    def image_of(self, name: str) -> str:
        return f"{self._rows()[name][1]}/{name}.jpg"

    def places(self) -> Sequence[Place]:
        return (
            Place(path=self.folder / PICTURES, inside=("", f"{_FOLDER}/")),
            Place(path=self.folder / _FOLDER),
            Place(path=self.folder / "imgs"),
        )

    def distribution(self) -> Sequence[OutsideFile]:
        return [
            self.own_file(name, origin=f"{_HUB}/resolve/main/{name} ({said})")
            for name, said in ((LIST, "8.8 MB"), (PICTURES, "3.6 GB"))
        ]

    def _rows(self) -> dict[str, tuple[str, str]]:
        return read_once(self.folder / LIST, _read)


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """Id -> prompt and category, in the file's order."""
    rows: dict[str, tuple[str, str]] = {}
    for name, row in read_json_object(path).items():
        given = [row.get(key) for key in ("prompt", "category")] if isinstance(row, dict) else []
        if not all(isinstance(value, str) for value in given) or not given:
            raise ValueError(f"{path}: {name!r} has no prompt and category, which are texts")
        rows[name] = (str(given[0]), str(given[1]))
    return rows
