"""Members of zips and tars, read where they lie.

A zip, and a tar that is not compressed, is read at any place. A compressed tar can only be read
from its beginning: members in its own order cost one pass, every step back another one.
"""

from __future__ import annotations

import functools
import os
import tarfile
import threading
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

MOST_MEMBER_BYTES = 2**29  # a picture's; a small archive can claim much larger ones
_DAMAGE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)


def is_archive(path: Path) -> bool:
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def archive_names(path: Path) -> frozenset[str]:
    """The files in an archive.

    Raises:
        ValueError: it is missing, or no whole archive.
    """
    return _opened(path).names


def archive_bytes(path: Path, *, member: str) -> bytes:
    """A member's content, whole and with the checksum that the archive has of it.

    Raises:
        ValueError: the archive or the member is missing, damaged or too large.
    """
    opened = _opened(path)
    if member not in opened.sizes:
        raise ValueError(f"{path} holds no {member}")
    if opened.sizes[member] > MOST_MEMBER_BYTES:
        raise ValueError(f"{path}: {member} has {opened.sizes[member] / 1e6:.0f} MB; it is refused")
    try:
        return opened.read(member)
    except _DAMAGE as error:
        raise ValueError(f"{path}: {member} cannot be read ({error}); fetch it again") from error


@dataclass(kw_only=True)
class _Archive:
    """One that stays open: its list of files is read once."""

    held: zipfile.ZipFile | tarfile.TarFile
    sizes: dict[str, int]
    names: frozenset[str]
    own_names: dict[str, str]  # as the archive has them
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, member: str) -> bytes:
        with self.lock:
            if isinstance(self.held, zipfile.ZipFile):
                return self.held.read(self.own_names[member])
            file = self.held.extractfile(self.own_names[member])
            if file is None:
                raise tarfile.TarError("is no file")
            content = file.read()
        if len(content) != self.sizes[member]:
            raise tarfile.TarError("ends in the middle")
        return content


def _opened(path: Path) -> _Archive:
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: no such file") from error
    # a process that was forked must not share the position in the file
    return _open(path, (status.st_size, status.st_mtime_ns, status.st_ino, os.getpid()))


@functools.lru_cache(maxsize=4)
def _open(path: Path, _label: tuple[int, ...]) -> _Archive:
    try:
        if zipfile.is_zipfile(path):
            packed = zipfile.ZipFile(path)
            return _listed(packed, {i.filename: i.file_size for i in packed.infolist()})
        unpacked = tarfile.open(path)  # noqa: SIM115  (stays open)
        return _listed(unpacked, {i.name: i.size for i in unpacked.getmembers() if i.isfile()})
    except _DAMAGE as error:
        raise ValueError(f"{path} cannot be read as a zip or tar; fetch it again") from error


def _listed(held: zipfile.ZipFile | tarfile.TarFile, sizes: dict[str, int]) -> _Archive:
    """`./a.jpg` is `a.jpg`; folders are left out."""
    own = {name.removeprefix("./"): name for name in sizes if not name.endswith("/")}
    return _Archive(
        held=held,
        sizes={name: sizes[inside] for name, inside in own.items()},
        names=frozenset(own),
        own_names=own,
    )
