"""Where results lie: content-addressed stages that are whole or not there at all.

A stage's folder is named by the hash of exactly what it depends on. It is filled under a
temporary name (`<hash>.partial`, kept when a run dies so that the next one goes on) and renamed
when whole, with a manifest of checksums. Two processes that want the same stage agree by a lock
file that names its owner and is taken over when the owner is dead.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.records import write_text_atomically
from experiments.errors import UserError
from experiments.store.lock import Lock, locked
from slurm.context import describe_job

log = logging.getLogger(__name__)

HASH_LENGTH = 16
MANIFEST = "manifest.json"
ATTEMPTS = ".attempts.jsonl"  # in a stage that is being made: who began, and when


def digest(key: Any) -> str:
    """The hash of a JSON-able key; independent of the order of its fields."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Stage:
    """A finished stage."""

    path: Path
    hash: str
    seconds: float  # what making it took, by whoever made it
    notes: dict[str, Any]  # what its maker said of it


class Store:
    """The folder `out` and the stages below it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, *, needed_bytes: int = 0) -> None:
        """Creates the folder and checks that it can be written and has room.

        Raises:
            UserError: it cannot be created or written, or the disk is too full.
        """
        probe = self.root / f".write-test-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"out={self.root}: cannot write there ({reason}); give a folder that can be "
                "written with out=/some/folder"
            ) from error
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes:
            raise UserError(
                f"out={self.root}: {free / 1e6:.0f} MB free, about {needed_bytes / 1e6:.0f} MB "
                "needed; free some space or give another folder with out=/some/folder"
            )

    def folder(self, kind: str, key: Any) -> Path:
        return self.root / "stages" / kind / digest(key)

    def find(self, kind: str, key: Any) -> Stage | None:
        """The finished stage by its manifest, or None; looks at sizes and changes nothing."""
        return _read_stage(self.folder(kind, key))

    def build(self, kind: str, key: Any, make: Callable[[Path], dict[str, Any] | None]) -> Stage:
        """The finished stage, made by `make(folder)` if it is not there or damaged.

        `make` may find in the folder what an earlier, killed call left and go on from it. What it
        returns is kept as notes.
        """
        folder = self.folder(kind, key)
        found = _read_stage(folder)
        if found is not None and _is_whole(found):
            return found
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_suffix(".lock")) as lock:
                try:
                    return _make(folder, make, kind=kind, key=key, lock=lock)
                except Exception:
                    if lock.still_held():
                        raise
                    log.warning("%s: another process has taken over; waiting for it", folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"no space left on the disk of out={self.root} while making {kind}; free "
                "some and give the same command again: it goes on where it stopped"
            ) from error
        return self.build(kind, key, make)


def _read_stage(folder: Path) -> Stage | None:
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    for name, entry in content["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != entry["bytes"]:
            return None
    return Stage(folder, folder.name, content["seconds"], content["notes"])


def _is_whole(stage: Stage) -> bool:
    """Whether every file is what was written; read once a process."""
    key = (stage.path, (stage.path / MANIFEST).stat().st_mtime_ns)
    if key not in _whole:
        try:
            verify(stage)
        except (UserError, OSError) as error:
            log.warning("%s", error)
            return False
        _whole.add(key)
    return True


_whole: set[tuple[Path, int]] = set()  # stages that this process has verified


def _make(
    folder: Path,
    make: Callable[[Path], dict[str, Any] | None],
    *,
    kind: str,
    key: Any,
    lock: Lock,
) -> Stage:
    """Fills and publishes a stage while its lock is held."""
    found = _read_stage(folder)
    if found is not None and _is_whole(found):
        return found
    if folder.exists():
        log.warning("%s is damaged: it is set aside and made again", folder)
        os.replace(folder, folder.with_suffix(f".damaged-{uuid.uuid4().hex[:8]}"))
    partial = folder.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    attempt = {**describe_job(), "pid": os.getpid(), "began_unix": time.time()}
    with (partial / ATTEMPTS).open("a") as stream:
        stream.write(json.dumps(attempt) + "\n")
    started = time.perf_counter()
    notes = make(partial) or {}
    seconds = time.perf_counter() - started
    _write_manifest(partial, kind=kind, key=key, seconds=seconds, notes=notes)
    lock.check()
    os.replace(partial, folder)
    return Stage(folder, folder.name, seconds, notes)


def verify(stage: Stage) -> None:
    """Compares every file of a stage with the checksum in its manifest.

    Raises:
        UserError: a file differs.
    """
    content = json.loads((stage.path / MANIFEST).read_text())
    for name, entry in content["files"].items():
        if file_digest(stage.path / name) != entry["sha256"]:
            raise UserError(f"{stage.path / name} is not what was written; remove {stage.path}")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text)


def _write_manifest(
    folder: Path, *, kind: str, key: Any, seconds: float, notes: dict[str, Any]
) -> None:
    files = {}
    attempts = [json.loads(line) for line in (folder / ATTEMPTS).read_text().splitlines() if line]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            if path.name.startswith("."):
                path.unlink()  # a temporary file of a killed run
                continue
            entry = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            files[str(path.relative_to(folder))] = entry
    content = {
        "kind": kind,
        "key": key,
        "seconds": seconds,  # of the last attempt
        "attempts": attempts,
        "notes": notes,
        "files": files,
    }
    write_text(folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")
