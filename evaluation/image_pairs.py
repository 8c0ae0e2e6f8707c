"""Folders of images from anywhere, paired by name, as the PNG files that metrics read.

An RGB PNG is linked where it lies; whatever else is decoded once. Nothing is resized.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from evaluation.datasets.picture_files import PictureFile
from evaluation.images import write_png

_LOSSY = ("JPEG", "WEBP")  # WebP has a lossless kind too; which one it is, its header tells nobody
_ORIENTATION = 0x0112  # of EXIF
_NAMED_AT_MOST = 5

Size = tuple[int, int]  # width, height


@dataclass(kw_only=True)
class Prepared:
    """A folder of `{name}.png`, with what is to be said of the files that it was made from."""

    folder: Path
    sizes: dict[str, Size] = field(default_factory=dict)
    lossy: list[str] = field(default_factory=list)  # formats that have lost something already


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Names that all folders have, and how many each has beside them."""

    names: tuple[str, ...]
    left_out: Mapping[str, int]


def pair_names(folders: Mapping[str, Mapping[str, PictureFile]], *, common: bool) -> Paired:
    """The names that every folder has, sorted.

    Args:
        folders: label -> name -> picture, as `folder_pictures` finds them.
        common: images without a partner are left out; else they are refused.

    Raises:
        ValueError: images without a partner, or fewer than two pairs.
    """
    shared = set.intersection(*(set(files) for files in folders.values()))
    alone = {label: sorted(set(files) - shared) for label, files in folders.items()}
    if any(alone.values()) and not common:
        parts = [
            f"{len(names)} in {label} ({_some(names)})" for label, names in alone.items() if names
        ]
        raise ValueError(
            f"images that not every folder has: {'; '.join(parts)}; --common compares the "
            f"{len(shared)} that all have"
        )
    if len(shared) < 2:
        raise ValueError(f"{len(shared)} images have a partner of the same name; give two or more")
    return Paired(
        names=tuple(sorted(shared)),
        left_out={label: len(names) for label, names in alone.items() if names},
    )


def prepare(files: Mapping[str, PictureFile], folder: Path, *, names: Sequence[str]) -> Prepared:
    """Puts `{name}.png` of each name into a new folder.

    Raises:
        ValueError: a file that is no picture.
    """
    folder.mkdir(parents=True)
    prepared = Prepared(folder=folder)
    for name in names:
        source, target = files[name], folder / f"{name}.png"
        kind, size = _look(source.path)
        if kind == "PNG" and size is not None:
            _link(source.path.resolve(), target)
        else:
            picture = source.read()
            size = picture.size
            write_png(target, picture)
        prepared.sizes[name] = size
        if kind in _LOSSY and kind not in prepared.lossy:
            prepared.lossy.append(kind)
    return prepared


def _link(source: Path, target: Path) -> None:
    """A copy where the file system knows no links."""
    try:
        os.symlink(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_sizes(a: Prepared, b: Prepared, *, labels: tuple[str, str]) -> None:
    """Refuses pairs of unequal sizes.

    Raises:
        ValueError: there are some; the message names them.
    """
    unequal = [name for name, size in a.sizes.items() if b.sizes[name] != size]
    if unequal:
        shown = [f"{name}: {_said(a.sizes[name])} and {_said(b.sizes[name])}" for name in unequal]
        raise ValueError(
            f"{len(unequal)} of {len(a.sizes)} images have another size in {labels[0]} than in "
            f"{labels[1]} ({_some(shown)}); nothing is resized: that would change every metric"
        )


def _look(path: Path) -> tuple[str, Size | None]:
    """The format, and the size of a picture that can be read as it lies."""
    try:
        with Image.open(path) as picture:
            as_it_lies = picture.mode == "RGB" and picture.getexif().get(_ORIENTATION, 1) == 1
            as_it_lies &= "transparency" not in picture.info
            return str(picture.format), picture.size if as_it_lies else None
    except Exception:  # whatever a damaged header may raise
        return "", None  # decoding says what is wrong with it


def _said(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown}, ..."
