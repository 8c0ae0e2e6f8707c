"""`dci`: densely captioned images, 7,805 photographs of SA-1B with captions of about 1,000 words.

Source: Urbanek et al. 2023 (arXiv:2312.08578).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.datasets.published_data import Place, PublishedData, read_once
from evaluation.outside_files import OutsideFile, read_json_object

ANNOTATIONS, PICTURES = "annotations", "photos"
_PACKED = "densely_captioned_images"  # the folder in the authors' archive
_SHARD = "sa_000138.tar"  # of SA-1B, which has the photographs
_ARCHIVE = "https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz"
_PHOTOGRAPHS = "https://ai.meta.com/datasets/segment-anything-downloads/"


@dataclass(kw_only=True)
class Dci(PublishedData):
    """`annotations/*.json` by name, each with `image`, `short_caption` and `extra_caption`.

    The prompt is both captions, with a space between, as the SegQuant authors join them. Of the
    annotations only those that are used are opened: there are gigabytes of masks in them.
    """

    def all_ids(self) -> Sequence[str]:
        return [path.stem for path in read_once(self._annotations(), _listed)]

    def text_of(self, name: str) -> str:
        return self._annotation(name)[0]

    def image_of(self, name: str) -> str:
        return self._annotation(name)[1]

    def places(self) -> Sequence[Place]:
        return (
            Place(path=self.folder / PICTURES),
            Place(path=self.folder / _PACKED / PICTURES),
            Place(path=self.folder / _SHARD, inside=("", f"{Path(_SHARD).stem}/")),
        )

    def distribution(self) -> Sequence[OutsideFile]:
        shard = self.own_file(_SHARD, origin=f"{_PHOTOGRAPHS} (SA-1B's own licence)")
        if self._annotations().is_dir():
            return [shard]
        origin = f"{_ARCHIVE} (CC BY-NC), unpacked"
        return [self.own_file(ANNOTATIONS, origin=origin), shard]

    def _annotations(self) -> Path:
        own, packed = self.folder / ANNOTATIONS, self.folder / _PACKED / ANNOTATIONS
        return packed if packed.is_dir() and not own.is_dir() else own

    def _annotation(self, name: str) -> tuple[str, str]:
        return read_once(self._annotations() / f"{name}.json", _read)


def _listed(folder: Path) -> list[Path]:
    """In the order of their names: a folder has none of its own."""
    found = sorted(folder.glob("*.json"))
    if not found:
        raise ValueError(f"{folder}: holds no annotation (*.json)")
    return found


def _read(path: Path) -> tuple[str, str]:
    """Prompt and picture."""
    row = read_json_object(path)
    image = row.get("image")
    captions = [row.get(key, "") for key in ("short_caption", "extra_caption")]
    if not isinstance(image, str) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{path}: has no image, short_caption and extra_caption, which are texts")
    prompt = " ".join(filter(None, captions))
    if not prompt:
        raise ValueError(f"{path}: has neither a short_caption nor an extra_caption")
    return prompt, image
