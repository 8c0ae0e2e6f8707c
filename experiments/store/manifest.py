"""The manifest of a finished stage: its key, its cost, the checksum of every file and its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from experiments.store.digests import digest, file_digest

MANIFEST = "manifest.json"
_OWN = "sha256"  # of the rest of the manifest
_TEMPORARY = re.compile(r"\..+\.\d+(-[0-9a-f]+)?\.tmp")  # a process's own, until it is renamed


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """JSON, one to one."""

    kind: str
    key: Any
    seconds: float  # of the last attempt, as is the memory
    peak_memory_bytes: int | None
    attempts: list[dict[str, Any]]  # who began, and when
    notes: dict[str, Any]  # what the stage's maker said of it
    files: dict[str, dict[str, Any]]  # name -> bytes, sha256

    def text(self) -> str:
        content = asdict(self)
        own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return json.dumps({**content, _OWN: own}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None if there is none that is whole and this folder's."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        del content[_OWN]
        manifest = Manifest(**content)
        # byte by byte: a float's last digit may be another and its value the same
        whole = manifest.text() == text and digest(manifest.key) == folder.name
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return manifest if whole else None


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file; what a killed run was still writing is removed."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path == folder / MANIFEST:
            continue
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
            continue
        name = str(path.relative_to(folder))
        files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return files


def differing_files(
    folder: Path, manifest: Manifest, *, hash_of: Callable[[Path], str] = file_digest
) -> list[str]:
    """Files that are not what was written, by their contents, and those that are not the stage's.

    Hidden files that are not the stage's are a file system's own.
    """
    differing = []
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            if hash_of(path) != entry["sha256"]:
                differing.append(name)
        except OSError:
            differing.append(name)
    known = {MANIFEST, *manifest.files}
    known |= {str(parent) for name in manifest.files for parent in PurePath(name).parents}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name not in known and not path.name.startswith("."):
            differing.append(name)
    return differing
