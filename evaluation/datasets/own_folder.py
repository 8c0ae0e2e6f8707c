"""`folder`: prompts and pictures of one's own, in any of the common formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.datasets.archives import archive_names
from evaluation.datasets.picture_files import SUFFIXES, folder_pictures
from evaluation.datasets.prompt_lists import FORMATS, ListedPrompt, read_prompt_list
from evaluation.datasets.published_data import Place, PublishedData, read_once
from evaluation.outside_files import OutsideFile

_STEM = "prompts"  # of the list's name, where none is given


@dataclass(kw_only=True)
class OwnFolder(PublishedData):
    """A list of prompts in a folder, and the pictures beside it.

    A picture is the one that the prompt's `image` names, else the one whose name is the id.
    """

    prompts_file: str | None = None  # below root; null: prompts.jsonl, .csv, .tsv, .txt or .yaml
    images: str | None = None  # a folder, zip or tar below root; null: no pictures

    def all_ids(self) -> Sequence[str]:
        return list(self._listed())

    def text_of(self, name: str) -> str:
        return self._listed()[name].text

    def image_of(self, name: str) -> str:
        named = self._listed()[name].image
        if named is not None:
            return named
        (place,) = self.places()
        found = read_once(place.path, _by_stem).get(name)
        if found is None:
            raise ValueError(f"{place.path}: holds no picture of {name!r}")
        return found

    def places(self) -> Sequence[Place]:
        return () if self.images is None else (Place(path=self.folder / self.images),)

    def distribution(self) -> Sequence[OutsideFile]:
        return []  # nobody passes them on

    def _listed(self) -> Mapping[str, ListedPrompt]:
        return read_once(self._list(), read_prompt_list)

    def _list(self) -> Path:
        if self.prompts_file is not None:
            return self.folder / self.prompts_file
        there = [p for kind in FORMATS if (p := self.folder / f"{_STEM}{kind}").is_file()]
        if len(there) != 1:
            said = ", ".join(path.name for path in there) or "none"
            raise ValueError(
                f"{self.folder}: of {_STEM}{f', {_STEM}'.join(FORMATS)} there is {said}; name one "
                "in dataset.prompts_file"
            )
        return there[0]


def _by_stem(place: Path) -> dict[str, str]:
    """The id that a picture's name gives -> its name in a folder or an archive."""
    if place.is_dir():
        return {name: picture.path.name for name, picture in folder_pictures(place).items()}
    names = [Path(name) for name in sorted(archive_names(place))]
    found: dict[str, str] = {}
    for name in names:
        if name.suffix.lower() in SUFFIXES and not name.name.startswith("._"):
            if name.stem in found:
                raise ValueError(f"{place}: {found[name.stem]} and {name} have one id; keep one")
            found[name.stem] = str(name)
    return found
