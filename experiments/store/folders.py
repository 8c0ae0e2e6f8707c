"""Where results lie: content-addressed stages that are whole or not there at all.

A stage's folder is named by the hash of exactly what it depends on. It is filled under a
temporary name (`<hash>.partial`, kept when a run dies so that the next one goes on) and renamed
when whole, with a manifest of checksums. Two processes that want the same stage agree by a lock
file that names its owner and is taken over when the owner is dead.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.records import write_text_atomically
from evaluation.resources import peak_memory_bytes, reset_peak_memory
from experiments.errors import UserError
from experiments.store.digests import HASH_LENGTH, digest, file_digest
from experiments.store.entries import clear_way, ensure_folder, is_there, set_aside
from experiments.store.file_hashes import FileHashes
from experiments.store.journal import add_line, read_lines
from experiments.store.lock import Lock, locked
from experiments.store.manifest import (
    MANIFEST,
    Manifest,
    describe_files,
    differing_files,
    read_manifest,
)
from experiments.store.unfinished import DONE, sweep
from slurm.context import describe_job

log = logging.getLogger(__name__)

ATTEMPTS = ".attempts.jsonl"  # in a stage that is being made: who began, and when
_STAGE = re.compile(f"[0-9a-f]{{{HASH_LENGTH}}}")


@dataclass(frozen=True)
class Finished:
    """A finished stage."""

    path: Path
    hash: str
    seconds: float  # what making it took, by whoever made it
    peak_memory_bytes: int | None  # of the process that made it, meanwhile
    notes: dict[str, Any]  # what its maker said of it
    files: dict[str, str]  # name -> sha256

    def differs(self, name: str) -> bool:
        """Whether a file is not what was written; read once a process, and when it changes."""
        try:
            return _hashes.of(self.path / name) != self.files[name]
        except (OSError, KeyError):
            return True


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

    def folder(self, kind: str, name: str) -> Path:
        """Where a stage lies: `name` is the digest of its key."""
        return self.root / "stages" / kind / name

    def find(self, kind: str, name: str) -> Finished | None:
        """The finished stage by its manifest, or None; looks at sizes and changes nothing."""
        return _read_stage(self.folder(kind, name))

    def finished(self) -> list[Path]:
        """Folders of all stages that were finished once, damaged or not."""
        return [
            folder
            for folder in sorted((self.root / "stages").glob("*/*"))
            if _STAGE.fullmatch(folder.name)
        ]

    def discard(self, kind: str) -> None:
        """Removes the finished stages of a kind, and its folder if nothing else is in it."""
        home = self.root / "stages" / kind
        if not home.is_dir():
            return
        with contextlib.suppress(OSError):  # what is still being made there, or cannot be removed
            for folder in home.iterdir():
                if _STAGE.fullmatch(folder.name):
                    shutil.rmtree(folder)
            home.rmdir()

    def ensure(self, folder: Path) -> None:
        """Creates a folder of the store; what lies in its place is set aside."""
        ensure_folder(folder, below=self.root)

    def build(self, kind: str, key: Any, make: Callable[[Path], dict[str, Any] | None]) -> Finished:
        """The finished stage, made by `make(folder)` if it is not there or damaged.

        `make` may find in the folder what an earlier, killed call said to `keep`, and go on from
        it. What it returns is kept as notes; `seconds` and `peak_memory_bytes` of these stand for
        what was measured here, where a stage is put together from what others made.
        """
        folder = self.folder(kind, digest(key))
        finished = _read_stage(folder)
        if finished is not None and _is_whole(finished):
            return finished
        try:
            self.ensure(folder.parent)
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


def _read_stage(folder: Path) -> Finished | None:
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for name, entry in manifest.files.items():
        try:
            if (folder / name).stat().st_size != entry["bytes"]:
                return None
        except OSError:
            return None
    return _finished(folder, manifest)


def _finished(folder: Path, manifest: Manifest) -> Finished:
    files = {name: entry["sha256"] for name, entry in manifest.files.items()}
    seconds, peak = manifest.seconds, manifest.peak_memory_bytes
    return Finished(folder, folder.name, seconds, peak, manifest.notes, files)


def _is_whole(stage: Finished) -> bool:
    """Whether every file is what was written, and no other is there."""
    try:
        verify(stage.path, hash_of=_hashes.of)
    except UserError as error:
        log.warning("%s", error)
        return False
    return True


def hash_once(path: Path) -> str:
    """A file's sha256: it is read once a process, and again when it has changed."""
    return _hashes.of(path)


_hashes = FileHashes(None)


def _make(
    folder: Path,
    make: Callable[[Path], dict[str, Any] | None],
    *,
    kind: str,
    key: Any,
    lock: Lock,
) -> Finished:
    """Fills and publishes a stage while its lock is held."""
    finished = _read_stage(folder)
    if finished is not None and _is_whole(finished):
        return finished
    if is_there(folder):
        log.warning("%s is damaged: it is set aside and made again", folder)
        set_aside(folder)
    partial = folder.with_suffix(".partial")
    ensure_folder(partial, below=folder.parent)
    for name in sweep(partial, but=(ATTEMPTS,)):
        log.warning("%s is not what was written: it is made again", partial / name)
    attempt = {**describe_job(), "pid": os.getpid(), "began_unix": time.time()}
    add_line(partial / ATTEMPTS, attempt)
    reset_peak_memory()
    started = time.perf_counter()
    notes = make(partial) or {}
    seconds = notes.pop("seconds", time.perf_counter() - started)
    peak = notes.pop("peak_memory_bytes", peak_memory_bytes())
    lock.check()  # or what is in the folder is another's by now
    manifest = _write_manifest(partial, kind=kind, key=key, seconds=seconds, peak=peak, notes=notes)
    lock.check()
    os.replace(partial, folder)
    return _finished(folder, manifest)


def verify(folder: Path, *, hash_of: Callable[[Path], str] = file_digest) -> None:
    """Compares every file of a stage with the checksum in its manifest.

    Raises:
        UserError: there is no whole manifest, or a file differs or is not the stage's.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder / MANIFEST} is not what was written; remove {folder}")
    for name in differing_files(folder, manifest, hash_of=hash_of):
        raise UserError(f"{folder / name} is not what was written; remove {folder}")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_way(path)
    write_text_atomically(path, text)


def _write_manifest(
    folder: Path, *, kind: str, key: Any, seconds: float, peak: int, notes: dict[str, Any]
) -> Manifest:
    attempts = read_lines(folder / ATTEMPTS)
    for name in (ATTEMPTS, DONE):
        (folder / name).unlink(missing_ok=True)
    manifest = Manifest(
        kind=kind,
        key=key,
        seconds=seconds,
        peak_memory_bytes=peak,
        attempts=attempts,
        notes=notes,
        files=describe_files(folder),
    )
    write_text(folder / MANIFEST, manifest.text())
    return manifest
