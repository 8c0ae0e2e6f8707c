"""The manifest of a finished stage: its key, its cost, the checksum of every file and its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.store.digests import file_digest

MANIFEST = "manifest.json"
_OWN = "sha256"  # of the rest of the manifest


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
        return json.dumps({**content, _OWN: _checksum(content)}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None if there is none that is whole."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        own = content.pop(_OWN)
        return Manifest(**content) if own == _checksum(content) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_files(folder: Path, *, but: str) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file; what starts with a dot, a killed run's, is removed."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == but:
            continue
        if path.name.startswith("."):
            path.unlink()
            continue
        name = str(path.relative_to(folder))
        files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return files


def differing_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files that are not what was written: by their contents, all of which are read."""
    differing = []
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            if file_digest(path) != entry["sha256"]:
                differing.append(name)
        except OSError:
            differing.append(name)
    return differing
