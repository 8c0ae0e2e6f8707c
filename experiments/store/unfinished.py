"""What a killed call left of a stage, and which of it the next may go on from.

A maker that goes on says of each file that it is done; its checksum is kept beside it. What nobody
vouched for, or is not what was written, is removed before the stage is made.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from experiments.store.digests import digest, file_digest
from experiments.store.entries import remove
from experiments.store.journal import add_line, read_lines

DONE = ".done.jsonl"
_OWN = "own"  # of a line: the digest of the rest


def keep(path: Path, content: bytes, **notes: Any) -> None:
    """A file directly in a stage's folder is done, or will be with a rename.

    Said before the file gets its name, so that a call that is killed in between leaves none that
    nobody vouched for. The notes are given back with it.
    """
    line = {"name": path.name, "sha256": hashlib.sha256(content).hexdigest(), "notes": notes}
    add_line(path.parent / DONE, {**line, _OWN: digest(line)})


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> notes of the files that were kept, the latest of each name; one may be missing."""
    return {name: line["notes"] for name, line in _lines(folder).items()}


def sweep(folder: Path, *, but: tuple[str, ...]) -> list[str]:
    """Removes what was not kept, or has changed since; the names of what has changed."""
    known, changed = _lines(folder), []
    for path in folder.iterdir():
        if path.name in (DONE, *but) and path.is_file():
            continue
        if path.name in known:
            if _fits(path, known[path.name]["sha256"]):
                continue
            changed.append(path.name)
        remove(path)
    return sorted(changed)


def _lines(folder: Path) -> dict[str, dict[str, Any]]:
    lines = read_lines(folder / DONE)
    return {line["name"]: line for line in lines if line.pop(_OWN, None) == digest(line)}


def _fits(path: Path, sha256: Any) -> bool:
    try:
        return not path.is_symlink() and file_digest(path) == sha256
    except OSError:
        return False
