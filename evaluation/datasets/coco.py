"""`coco`: COCO-2017's 5,000 validation photographs, each with about five captions.

Source: Lin et al. 2014 (arXiv:1405.0312); Chen et al. 2015 (arXiv:1504.00325).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.datasets.archives import archive_bytes
from evaluation.datasets.published_data import Place, PublishedData, read_once
from evaluation.outside_files import OutsideFile, parsed, read_json_object

LIST, PICTURES = "captions_val2017.json", "val2017.zip"
_FOLDER, _LISTS = "val2017", "annotations_trainval2017.zip"
_SITE = "http://images.cocodataset.org"
CAPTIONS = ("first", "joined")


@dataclass(kw_only=True)
class Coco(PublishedData):
    """The list has `images` {id, file_name} and `annotations` {image_id, caption}."""

    captions: str = "first"  # in the file's order; or joined: all of a picture's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions not in CAPTIONS:
            raise ValueError(f"dataset.captions={self.captions!r}; choose {' or '.join(CAPTIONS)}")

    def all_ids(self) -> Sequence[str]:
        return list(self._captions())

    def text_of(self, name: str) -> str:
        captions = self._captions()[name]
        return captions[0] if self.captions == "first" else " ".join(captions)

    def image_of(self, name: str) -> str:
        return f"{name}.jpg"

    def places(self) -> Sequence[Place]:
        return (
            Place(path=self.folder / PICTURES, inside=(f"{_FOLDER}/", "")),
            Place(path=self.folder / _FOLDER),
        )

    def distribution(self) -> Sequence[OutsideFile]:
        pictures = self.own_file(PICTURES, origin=f"{_SITE}/zips/{PICTURES} (about 0.8 GB)")
        if self._list().is_file():
            return [pictures]
        origin = f"{_SITE}/annotations/{_LISTS} (about 0.25 GB)"
        return [self.own_file(_LISTS, origin=origin), pictures]

    def _list(self) -> Path:
        """The captions, or the archive that they come in."""
        there = [self.folder / LIST, self.folder / "annotations" / LIST, self.folder / _LISTS]
        return next((path for path in there if path.is_file()), there[0])

    def _captions(self) -> dict[str, list[str]]:
        return read_once(self._list(), _read)


def _read(path: Path) -> dict[str, list[str]]:
    """The stem of each picture's name -> its captions, in the order of `images`."""
    content = _content(path)
    try:
        names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        captions: dict[str, list[str]] = {name: [] for name in names.values()}
        for row in content["annotations"]:
            captions[names[row["image_id"]]].append(" ".join(row["caption"].split()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: is no COCO file of captions ({type(error).__name__}: {error})"
        ) from error
    without = [name for name, own in captions.items() if not own]
    if without:
        raise ValueError(f"{path}: {without[0]} has no caption")
    return captions


def _content(path: Path) -> dict[str, Any]:
    if path.name == LIST:
        return read_json_object(path)
    data = archive_bytes(path, member=f"annotations/{LIST}")
    content = parsed(data.decode("utf-8", errors="replace"), where=f"{path}: annotations/{LIST}")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: annotations/{LIST} is no object")
    return content
