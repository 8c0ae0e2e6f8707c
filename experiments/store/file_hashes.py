"""Checksums of files, read once and kept by path, size, inode and times."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.datasets.archives import archive_bytes
from evaluation.records import write_text_atomically
from experiments.store.digests import digest, file_digest

if TYPE_CHECKING:
    from evaluation.datasets.picture_files import PictureFile

HASHES = Path("stages", "file_hashes.json")  # in a store
log = logging.getLogger(__name__)

_BETWEEN = "|"
_INSIDE = "\0"  # no path has one: before the name of a member of an archive
_KNOWN, _OWN = "files", "own"  # keys of the cache: the checksums, and the digest of these


class FileHashes:
    """The sha256 of files; `cache` is a JSON file, None keeps them in memory alone.

    A damaged cache is thrown away: it costs a reading of the files.
    """

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._known = {} if cache is None else _read(cache)
        self._fresh = False

    def of(self, path: Path) -> str:
        label = _label(path)
        if label not in self._known:
            self._known[label] = file_digest(path)
            self._fresh = True
        return self._known[label]

    def of_picture(self, picture: PictureFile) -> str:
        """Of a picture, also of one in an archive: as long as the archive is as it was."""
        if picture.member is None:
            return self.of(picture.path)
        label = _label(picture.path, member=picture.member)
        if label not in self._known:
            self._known[label] = picture.sha256()
            self._fresh = True
        return self._known[label]

    def keep(self) -> None:
        """Writes what was read since, if anything; a cache that cannot be written costs time."""
        if self._fresh and self._cache is not None:
            with contextlib.suppress(OSError):
                self._known = _read(self._cache) | self._known  # others write it too
                content = {_KNOWN: self._known, _OWN: digest(self._known)}
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(self._cache, json.dumps(content, indent=0) + "\n")
            self._fresh = False

    def changed(self) -> list[Path]:
        """Files that were changed under their size and times; all that are there are read."""
        differing = []
        for label, sha256 in self._known.items():
            name, _, member = label.rpartition(_BETWEEN)[0].partition(_INSIDE)
            path = Path(name)
            with contextlib.suppress(OSError):  # gone: asked for again, it is another
                if _label(path, member=member) == label and _digest_of(path, member) != sha256:
                    differing.append(path)
        return sorted(set(differing))


def _label(path: Path, *, member: str = "") -> str:
    """A file written over by `cp -p` or `touch -r` has another time of change, or another inode."""
    status = path.stat()
    times = f"{status.st_mtime_ns},{status.st_ctime_ns}"
    inside = f"{_INSIDE}{member}" if member else ""
    return f"{path.resolve()}{inside}{_BETWEEN}{status.st_size},{status.st_ino},{times}"


def _digest_of(path: Path, member: str) -> str | None:
    """None of a member that cannot be read any more."""
    if not member:
        return file_digest(path)
    try:
        return hashlib.sha256(archive_bytes(path, member=member)).hexdigest()
    except ValueError:
        return None


def _read(cache: Path) -> dict[str, str]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        known: dict[str, str] = content[_KNOWN]
        if digest(known) != content[_OWN]:
            raise ValueError("not what was written")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        log.warning("%s is damaged: the files it tells of are read again (%s)", cache, error)
        return {}
    return known
