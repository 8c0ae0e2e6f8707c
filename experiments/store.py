"""Where results lie: content-addressed stages that are whole or not there at all.

A stage's folder is named by the hash of exactly what it depends on. It is filled under a
temporary name (`<hash>.partial`, kept when a run dies so that the next one goes on) and renamed
when whole, with a manifest of checksums. Two processes that want the same stage agree by a lock
file that names its owner and is taken over when the owner is dead.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.records import write_text_atomically
from experiments.errors import UserError

log = logging.getLogger(__name__)

HASH_LENGTH = 16
MANIFEST = "manifest.json"
_HEARTBEAT_SECONDS = 10.0
_DEAD_AFTER_SECONDS = 120.0
_POLL_SECONDS = 0.5


def digest(key: Any) -> str:
    """The hash of a JSON-able key; independent of the order of its fields."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def source_digest(*packages: str) -> str:
    """The hash of all Python source under folders (or files) of the project."""
    root = Path(__file__).resolve().parent.parent
    state = hashlib.sha256()
    for package in packages:
        base = root / package
        for path in sorted(base.rglob("*.py")) if base.is_dir() else [base]:
            state.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()[:HASH_LENGTH]


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
        """The finished stage, or None. A damaged one is set aside with a warning."""
        folder = self.folder(kind, key)
        manifest = folder / MANIFEST
        if not manifest.exists():
            return None
        content = json.loads(manifest.read_text())
        for name, entry in content["files"].items():
            path = folder / name
            if not path.exists() or path.stat().st_size != entry["bytes"]:
                log.warning("%s is damaged (%s): it is made again", folder, name)
                _set_aside(folder)
                return None
        return Stage(folder, folder.name, content["seconds"], content["notes"])

    def build(self, kind: str, key: Any, make: Callable[[Path], dict[str, Any] | None]) -> Stage:
        """The finished stage, made by `make(folder)` if it is not there.

        `make` may find in the folder what an earlier, killed call left and go on from it. What it
        returns is kept as notes.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        folder = self.folder(kind, key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_suffix(".lock")):
            found = self.find(kind, key)
            if found is not None:
                return found
            partial = folder.with_suffix(".partial")
            partial.mkdir(exist_ok=True)
            started = time.perf_counter()
            try:
                notes = make(partial) or {}
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise UserError(
                        f"no space left on the disk of out={self.root} while making {kind}; free "
                        "some and give the same command again: it goes on where it stopped"
                    ) from error
                raise
            seconds = time.perf_counter() - started
            _write_manifest(partial, kind=kind, key=key, seconds=seconds, notes=notes)
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
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            if path.name.startswith("."):
                path.unlink()  # a temporary file of a killed run
                continue
            entry = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            files[str(path.relative_to(folder))] = entry
    content = {"kind": kind, "key": key, "seconds": seconds, "notes": notes, "files": files}
    write_text(folder / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _set_aside(folder: Path) -> None:
    target = folder.with_suffix(f".damaged-{int(time.time())}")
    os.replace(folder, target)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Exclusive by creation; the owner's heartbeat is the file's modification time."""
    waiting = False
    while not _acquire(path):
        if _owner_is_dead(path):
            log.warning("%s was left by a process that is gone: taken over", path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            continue
        if not waiting:
            log.info("waiting for %s, which another process is making", path.stem)
            waiting = True
        time.sleep(_POLL_SECONDS)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _acquire(path: Path) -> bool:
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as stream:
        stream.write(owner)
    return True


def _owner_is_dead(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text() or "{}")
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if owner.get("host") == socket.gethostname():
        try:
            os.kill(int(owner["pid"]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return age > _DEAD_AFTER_SECONDS


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
