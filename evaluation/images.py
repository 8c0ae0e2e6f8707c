"""Images on disk: lossless PNG, one file a prompt, named by the prompt's id.

Shapes: N images, H height, W width, C = 3 colour channels.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

_NAMED_AT_MOST = 5  # names that an error message lists
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def write_png(
    path: Path | str,
    image: np.ndarray[Any, Any] | Image.Image,
    *,
    before: Callable[[bytes], None] | None = None,
) -> None:
    """Write a uint8 HWC array or an RGB image as PNG, atomically.

    Args:
        before: given the file's content when it is whole and has not got its name yet.

    Raises:
        ValueError: another suffix, dtype, shape or mode: nothing is converted on the way.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: images are stored lossless, as .png; got {path.suffix!r}")
    picture = image if isinstance(image, Image.Image) else _to_picture(image, path=path)
    if picture.mode != "RGB":
        raise ValueError(f"{path}: mode is {picture.mode!r}; give an RGB image")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        if before is not None:
            before(buffer.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def through_jpeg(image: np.ndarray[Any, Any], *, quality: int = 75) -> np.ndarray[Any, Any]:
    """What is left of a uint8 HWC image after JPEG, with Pillow's default settings."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _to_picture(array: np.ndarray[Any, Any], *, path: Path) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"{path}: got {array.dtype} of shape {array.shape}; give uint8 of shape (H, W, 3)"
        )
    return Image.fromarray(array)


def image_ids(folder: Path | str) -> list[str]:
    """The ids of the PNG images that lie directly in `folder`, sorted.

    An id may begin with a dot; `._name` is what some systems put beside every file.

    Raises:
        ValueError: no such folder, no image in it, or images in another format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("._"))
    others = [name for name in names if name.lower().endswith(_OTHER_FORMATS)]
    if others:
        raise ValueError(
            f"{folder}: {_some(others)}: only lossless PNG is scored; JPEG and others change "
            "the metrics; write the images again as PNG"
        )
    ids = [name[: -len(".png")] for name in names if name.endswith(".png")]
    if not ids:
        raise ValueError(f"{folder}: holds no .png image")
    return ids


def check_ids(folder: Path | str, ids: Sequence[str]) -> None:
    """Refuse a folder that does not hold exactly the images of `ids`.

    Raises:
        ValueError: an id is given twice, has no image, or an image has no id. The intersection is
            never taken silently: two methods would be scored on different prompts.
    """
    wanted = set(ids)
    if len(wanted) != len(ids):
        repeated = sorted({name for name in ids if list(ids).count(name) > 1})
        raise ValueError(f"{folder}: ids given more than once: {_some(repeated)}")
    present = set(image_ids(folder))
    missing, extra = sorted(wanted - present), sorted(present - wanted)
    if missing or extra:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(wanted)} missing: {_some(missing)}")
        if extra:
            parts.append(f"{len(extra)} not asked for: {_some(extra)}")
        raise ValueError(
            f"{folder}: {'; '.join(parts)}; the folder must hold exactly one {{id}}.png for each id"
        )


def load_images(folder: Path | str, ids: Sequence[str], *, as_float: bool = False) -> torch.Tensor:
    """Read the images of `ids`, in that order.

    Returns:
        uint8 (N, H, W, 3), or with `as_float` float32 (N, 3, H, W) in [0, 1].

    Raises:
        ValueError: missing or extra images, a file that is not an RGB PNG, or unequal sizes.
    """
    check_ids(folder, ids)
    stacked = read_batch(Path(folder), ids, first=ids[0])
    return to_float(stacked) if as_float else stacked


def read_batch(folder: Path, ids: Sequence[str], *, first: str) -> torch.Tensor:
    """The images of `ids`, uint8 (N, H, W, 3), of the size of `first`'s; others are not looked for.

    Raises:
        ValueError: a file that is not an RGB PNG, or unequal sizes.
    """
    expected = _read_png(folder / f"{first}.png").shape
    arrays = [_read_png(folder / f"{name}.png") for name in ids]
    for name, array in zip(ids, arrays, strict=True):
        if array.shape != expected:
            raise ValueError(
                f"{folder}: {name}.png is {array.shape[1]}x{array.shape[0]}, {first}.png is "
                f"{expected[1]}x{expected[0]}; all images must have one size"
            )
    return torch.from_numpy(np.stack(arrays))


def _read_png(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        if picture.format != "PNG":
            raise ValueError(f"{path}: holds {picture.format}, not PNG; write it again, lossless")
        if picture.mode != "RGB":
            raise ValueError(f"{path}: mode is {picture.mode!r}; only RGB images are scored")
        return np.array(picture)


@dataclass(frozen=True, kw_only=True)
class FolderPicture:
    """One image of a folder, as it is scored: lossless."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> Image.Image:
        """
        Raises:
            ValueError: it is no RGB PNG.
        """
        return Image.fromarray(_read_png(self.path))

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def to_float(images_NHWC: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [0, 1]."""
    if images_NHWC.dtype != torch.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3:
        raise ValueError(
            f"got {images_NHWC.dtype} of shape {tuple(images_NHWC.shape)}; "
            "give uint8 of shape (N, H, W, 3)"
        )
    return images_NHWC.permute(0, 3, 1, 2).contiguous().to(torch.float32) / 255


def image_size(folder: Path, name: str) -> tuple[int, int]:
    """Height and width of one image."""
    with Image.open(folder / f"{name}.png") as picture:
        return picture.height, picture.width


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_AT_MOST])
    return shown if len(names) <= _NAMED_AT_MOST else f"{shown}, ..."
