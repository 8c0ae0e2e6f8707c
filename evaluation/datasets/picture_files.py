"""Pictures by where they lie: a file, or a member of a zip or tar. Nothing is copied."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evaluation.datasets.archives import MOST_MEMBER_BYTES, archive_bytes, archive_names
from evaluation.datasets.control_images import draw, drawing_identity
from evaluation.datasets.pictures import decode_picture, glance_at_picture

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
)


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture where it lies.

    Args:
        member: its name in the archive that `path` is; None: `path` is the picture.
        drawn: of `DRAWINGS`; what is drawn from it whenever it is read.
    """

    path: Path
    member: str | None = None
    drawn: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    def exists(self) -> bool:
        if self.member is None:
            return self.path.is_file()
        return self.path.is_file() and self.member in archive_names(self.path)

    def read(self) -> Image.Image:
        """In RGB, decoded by the rules of `pictures`; or what is drawn from that.

        Raises:
            ValueError: it is missing, no picture, damaged or too large.
        """
        picture = decode_picture(self.content(), name=self.name)
        return picture if self.drawn is None else draw(self.drawn, picture)

    def identity(self) -> str:
        """What decides its pixels, but for the rules of decoding.

        Raises:
            ValueError: as `content`.
        """
        drawn = "" if self.drawn is None else f" {drawing_identity(self.drawn)}"
        return self.sha256() + drawn

    def glance(self) -> None:
        """Raises what can be told of a damaged one without decoding it."""
        glance_at_picture(self.content(), name=self.name)

    def sha256(self) -> str:
        """Of the bytes that it is made from; read once a process, as long as the file is as it was.

        Raises:
            ValueError: as `content`.
        """
        return _sha256(self, self._state())

    def content(self) -> bytes:
        """The bytes that it is made from.

        Raises:
            ValueError: it is missing or too large.
        """
        if self.member is not None:
            return archive_bytes(self.path, member=self.member)
        try:
            size = self.path.stat().st_size
            if size > MOST_MEMBER_BYTES:
                raise ValueError(f"{self.name} has {size / 1e6:.0f} MB; that is no picture")
            return self.path.read_bytes()
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read ({error.strerror or error})") from error

    def _state(self) -> tuple[int, ...]:
        """A file that was written over has another one."""
        try:
            status = self.path.stat()
        except OSError as error:
            raise ValueError(f"{self.name} cannot be read ({error.strerror or error})") from error
        return (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=2**17)
def _sha256(picture: PictureFile, _state: tuple[int, ...]) -> str:
    return hashlib.sha256(picture.content()).hexdigest()


def folder_pictures(folder: Path | str) -> dict[str, PictureFile]:
    """Id -> picture of a folder, in any format; the id is the file's name up to its suffix.

    Raises:
        ValueError: no such folder, no picture in it, or two files of one id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    found: dict[str, PictureFile] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("._"):
            continue
        if path.stem in found:
            raise ValueError(
                f"{folder}: {found[path.stem].path.name} and {path.name} have one id; keep one"
            )
        found[path.stem] = PictureFile(path=path)
    if not found:
        raise ValueError(f"{folder}: holds no picture ({', '.join(sorted(SUFFIXES))})")
    return found


def check_present(pictures: Mapping[str, PictureFile], *, setting: str) -> None:
    """Raises ValueError with the first that is missing, and how many are."""
    missing = [picture for picture in pictures.values() if not picture.exists()]
    if missing:
        more = f" ({len(missing)} of {len(pictures)} are)" if len(missing) > 1 else ""
        raise ValueError(f"{setting}: {missing[0].name} is missing{more}")


def check_readable(pictures: Iterable[PictureFile]) -> None:
    """Raises ValueError with the first that is damaged; each is decoded once."""
    for picture in pictures:
        picture.read()


def check_one_size(pictures: Sequence[PictureFile]) -> None:
    """Raises ValueError with the first that is damaged, or of another size than the first."""
    first: tuple[int, int] | None = None
    for picture in pictures:
        size = picture.read().size
        first = first or size
        if size != first:
            raise ValueError(
                f"{picture.name} is {size[0]}x{size[1]}, {pictures[0].name} is "
                f"{first[0]}x{first[1]}; all pictures that a call takes must have one size"
            )
