"""Checksums of large files, read once and kept by path, size and time."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from experiments.store.digests import digest, file_digest
from experiments.store.folders import write_text

log = logging.getLogger(__name__)

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
        status = path.stat()
        label = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if label not in self._known:
            self._known[label] = file_digest(path)
            self._fresh = True
        return self._known[label]

    def keep(self) -> None:
        """Writes what was read since, if anything; a cache that cannot be written costs time."""
        if self._fresh and self._cache is not None:
            with contextlib.suppress(OSError):
                self._known = _read(self._cache) | self._known  # others write it too
                content = {_KNOWN: self._known, _OWN: digest(self._known)}
                write_text(self._cache, json.dumps(content, indent=0) + "\n")
            self._fresh = False


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
