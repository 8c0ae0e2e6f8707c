"""What published data sets share: how prompts are chosen, and where pictures are looked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from evaluation.datasets.archives import archive_names
from evaluation.datasets.control_images import CANNY, CANNY_JPEG
from evaluation.datasets.interface import FILES, Prompt
from evaluation.datasets.picture_files import PictureFile, check_present
from evaluation.datasets.prompt_lists import read_prompt_list
from evaluation.datasets.selection import (
    SELECTIONS,
    calibration_ids,
    read_id_list,
    select_ids,
)
from evaluation.outside_files import OutsideFile

_FORMATS = {"png": CANNY, "jpeg": CANNY_JPEG}
_OTHER_LIST = "other-"  # before ids of `calibration_path`: the id is the root of the noise

Value = TypeVar("Value")
_kept: dict[tuple[object, ...], object] = {}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where pictures may lie: a folder, or an archive whose members begin with one of `inside`."""

    path: Path
    inside: tuple[str, ...] = ("",)

    def find(self, name: str) -> PictureFile | None:
        if self.path.is_dir():
            picture = PictureFile(path=self.path / name)
            return picture if picture.exists() else None
        if self.path.is_file():
            names = archive_names(self.path)
            found = next((prefix + name for prefix in self.inside if prefix + name in names), None)
            return None if found is None else PictureFile(path=self.path, member=found)
        return None


@dataclass(kw_only=True)
class PublishedData:
    """A data set in a folder, as its authors pass it on; a subclass in a file of its own reads it.

    Of the fields, see `docs/datasets.md`.
    """

    name: str
    root: str  # folder with the data set's own files
    evaluation_prompts: int
    calibration_prompts: int
    selection: str = "first"  # of evaluation prompts: first, random (by seed), deepcompressor, list
    ids: str | None = None  # of selection=list: a file of ids, one a line
    ids_sha256: str | None = None  # that this file must have
    seed: int = 0
    calibration_seed: int | None = None  # null is `seed`
    calibration_path: str | None = None  # prompts to calibrate with from another list; null: others
    # of this data set than those that are evaluated on
    true_images: bool = True  # false: prompts alone, without metrics against the data set's images
    control: str | None = None  # canny: edges of each prompt's image go into the pipeline's call
    control_format: str = "png"  # or jpeg, as the SegQuant authors keep theirs
    control_as: str = "control_image"  # what the call names it; SDXL's ControlNet says image

    def __post_init__(self) -> None:
        _one_of("selection", self.selection, SELECTIONS)
        _one_of("control", self.control, (None, CANNY))
        _one_of("control_format", self.control_format, tuple(_FORMATS))
        _one_of("control_as", self.control_as, FILES)
        if (self.selection == "list") != (self.ids is not None):
            raise ValueError("dataset.selection=list goes with dataset.ids=FILE, and with it alone")

    # what a subclass says --------------------------------------------------------------------

    def all_ids(self) -> Sequence[str]:
        """The ids of all prompts, in the order of the data set's file."""
        raise NotImplementedError

    def text_of(self, name: str) -> str:
        raise NotImplementedError

    def image_of(self, name: str) -> str:
        """Its picture's name below one of the `places`."""
        raise NotImplementedError

    def places(self) -> Sequence[Place]:
        """Where pictures are looked for, in this order; none where the data set has none."""
        return ()

    def distribution(self) -> Sequence[OutsideFile]:
        """The data set's own files; those of pictures are needed where no other place has them."""
        raise NotImplementedError

    def own_file(self, name: str, *, origin: str) -> OutsideFile:
        """One of these files, with where to get it."""
        path, needed_by = self.folder / name, f"dataset {self.name}"
        return OutsideFile(path=path, needed_by=needed_by, origin=origin, size=None, sha256=None)

    @property
    def images_a_prompt(self) -> int:
        """Each with noise of its own."""
        return 1

    # what the harness asks -------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return Path(self.root)

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        if self.control is not None and not self.places():
            raise ValueError(f"dataset.control={self.control}: {self.name} has no pictures")
        evaluated = self.selected_ids()
        each = self.images_a_prompt
        evaluation = tuple(
            self._prompt(name, f"{name}-{number}" if each > 1 else name)
            for name in evaluated
            for number in range(each)
        )
        return {"evaluation": evaluation, "calibration": self._calibration(evaluated)}

    def selected_ids(self) -> list[str]:
        """Of the prompts that are evaluated on."""
        count, odd = divmod(self.evaluation_prompts, self.images_a_prompt)
        if odd:
            raise ValueError(
                f"dataset.evaluation_prompts={self.evaluation_prompts} with "
                f"{self.images_a_prompt} images a prompt; give a multiple"
            )
        listed = self.ids and read_id_list(Path(self.ids), sha256=self.ids_sha256)
        return select_ids(
            self.all_ids(),
            selection=self.selection,
            count=count,
            seed=self.seed,
            listed=listed or (),
        )

    def has_images(self) -> bool:
        return self.true_images and bool(self.places())

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        if not self.has_images():
            return {}
        return {prompt.id: self._picture(prompt.id) for prompt in prompts}

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        raise ValueError(f"dataset {self.name} draws no images")

    def check_images(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError with the first true image that is missing or damaged at a glance."""
        pictures = self.image_files(prompts)
        check_present(pictures, setting=f"dataset.root={self.root}")
        for picture in pictures.values():
            picture.glance()

    def outside_files(self) -> list[OutsideFile]:
        """The distribution's files; not an archive whose pictures lie unpacked."""
        places = [place.path for place in self.places()]
        needed = self.true_images or self.control is not None
        unpacked = any(path.exists() for path in places)
        return [
            file
            for file in self.distribution()
            if file.path not in places or (needed and (file.is_there() or not unpacked))
        ]

    def _calibration(self, evaluated: Sequence[str]) -> tuple[Prompt, ...]:
        seed = self.seed if self.calibration_seed is None else self.calibration_seed
        if self.calibration_path is None:
            chosen = calibration_ids(
                self.all_ids(),
                evaluated=evaluated,
                text_of=self.text_of,
                count=self.calibration_prompts,
                seed=seed,
            )
            return tuple(self._prompt(name, name) for name in chosen)
        if self.control is not None:
            raise ValueError("dataset.control draws from pictures, which calibration_path has none")
        listed = read_once(Path(self.calibration_path), read_prompt_list)
        others = {name: prompt.text for name, prompt in listed.items()}
        texts = {self.text_of(name) for name in evaluated}
        left = [name for name, text in others.items() if text not in texts]
        chosen = calibration_ids(
            left,
            evaluated=(),
            text_of=others.__getitem__,
            count=self.calibration_prompts,
            seed=seed,
        )
        return tuple(Prompt(id=f"{_OTHER_LIST}{name}", text=others[name]) for name in chosen)

    def _prompt(self, name: str, prompt_id: str) -> Prompt:
        if self.control is None:
            return Prompt(id=prompt_id, text=self.text_of(name))
        drawn = replace(self._picture(name), drawn=_FORMATS[self.control_format])
        files = ((self.control_as, drawn),)
        return Prompt(id=prompt_id, text=self.text_of(name), files=files)

    def _picture(self, name: str) -> PictureFile:
        return find_picture(self.places(), self.image_of(name))


def find_picture(places: Sequence[Place], name: str) -> PictureFile:
    """The picture at the first place that has it; else where it is missing."""
    found = next((picture for place in places if (picture := place.find(name))), None)
    if found is not None:
        return found
    first = next((place for place in places if place.path.exists()), places[0])
    if first.path.is_dir():
        return PictureFile(path=first.path / name)
    return PictureFile(path=first.path, member=first.inside[0] + name)


def read_once(path: Path, read: Callable[[Path], Value]) -> Value:
    """`read(path)`, kept for as long as the file is as it was: a sweep asks again and again.

    Raises:
        ValueError: no such file; what `read` raises.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(
            f"{path}: no such file; dataset.root is the folder with the data set's own files "
            "(docs/datasets.md says which)"
        ) from error
    key = (read.__module__, read.__qualname__, path)
    state = (status.st_size, status.st_mtime_ns, status.st_ino)
    held = _kept.get(key)
    if not isinstance(held, tuple) or held[0] != state:
        _kept[key] = held = (state, read(path))
    value: Value = held[1]
    return value


def _one_of(name: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        said = ", ".join("null" if each is None else each for each in allowed)
        raise ValueError(f"dataset.{name}={value!r}; choose one of {said}")
