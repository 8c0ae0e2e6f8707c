"""A lock that processes on several machines agree on, with nothing but a shared folder.

The lock is a file made by exclusive creation, which is atomic on local disks and on NFS from
version 3 (flock is not relied on). It names its owner; its modification time is the owner's
heartbeat. A waiting process takes it over when the owner's process is certainly gone, or when the
heartbeat has not moved for two minutes *of the waiting process's own clock*: the clocks of two
machines, or of a file server, are never compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.store.entries import is_there, remove
from slurm.context import is_gone, process_identity

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0
_TAKEOVER_SECONDS = 30.0  # taking over is a few file operations; longer means its process died
_POLL_SECONDS = 0.2
_FIRST = b'{"token": "'  # what every lock begins with


class LockLost(RuntimeError):  # noqa: N818 - what happened, not what kind of error
    """Another process judged this one dead (a suspended machine, a file server long away)."""


@dataclass
class Lock:
    """A lock that is held."""

    path: Path
    token: str

    def still_held(self) -> bool:
        state = _read(self.path)
        return state is not None and (state.owner or {}).get("token") == self.token

    def check(self) -> None:
        """Raises LockLost if another process has taken the lock over."""
        if not self.still_held():
            raise LockLost(f"{self.path}: taken over by another process while this one was silent")


@contextlib.contextmanager
def locked(path: Path, *, poll_seconds: float = _POLL_SECONDS) -> Iterator[Lock]:
    """Holds the lock `path` inside the block; waits for a living owner, for however long."""
    lock = _acquire(path, poll_seconds)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(lock, stop), daemon=True)
    beat.start()
    try:
        yield lock
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(OSError):
            if lock.still_held():
                path.unlink()


@dataclass(frozen=True)
class _State:
    """A lock file as one look at it shows."""

    owner: dict[str, Any] | None  # None: nobody who takes locks has written this
    beat: tuple[int, int, int]  # inode, modification time, size: whether it moved, never how old


def _read(path: Path) -> _State | None:
    # opening, not only stat: NFS asks the server again when a file is opened
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return _State(None, (status.st_ino, status.st_mtime_ns, 0))
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:  # a stale handle: the file was replaced while it was read
        log.debug("%s: %s", path, error)
        return _State({}, (0, 0, 0))
    return _State(_owner(content), (status.st_ino, status.st_mtime_ns, status.st_size))


def _owner(content: bytes) -> dict[str, Any] | None:
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        # cut short: its owner has not written yet, or died before it could
        return {} if _FIRST.startswith(content[: len(_FIRST)]) else None
    named = isinstance(owner, dict) and isinstance(owner.get("token"), str)
    return owner if named and isinstance(owner.get("pid"), int) else None


def _acquire(path: Path, poll_seconds: float) -> Lock:
    seen: _State | None = None
    since = time.monotonic()
    while True:
        lock = _create(path)
        if lock is not None:
            return lock
        state = _read(path)
        if state is None:
            continue
        if seen is None or state.beat != seen.beat:
            if seen is None:
                host = (state.owner or {}).get("host")
                log.info("waiting for %s, which %s makes", path.stem, host)
            seen, since = state, time.monotonic()
        if is_dead(state.owner, silent_seconds=time.monotonic() - since):
            _remove_dead(path, state)
            seen = None
            continue
        time.sleep(poll_seconds)


def is_dead(owner: dict[str, Any] | None, *, silent_seconds: float) -> bool:
    """Whether a lock's owner is to be given up after so long without a heartbeat."""
    if owner is None:
        return True
    return (bool(owner) and is_gone(owner)) or silent_seconds > DEAD_AFTER_SECONDS


def _create(path: Path) -> Lock | None:
    token = uuid.uuid4().hex
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(json.dumps({"token": token, **process_identity()}))
    except OSError:  # a full disk: leave no nameless lock behind
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return Lock(path, token)


def _remove_dead(path: Path, dead: _State) -> None:
    """Removes the lock of a dead owner, and never one that somebody took since.

    Of several processes that judged the owner dead, one holds `<lock>.takeover` and looks again.
    """
    guard = path.with_name(path.name + ".takeover")
    try:
        os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        _wait_for_guard(guard)
        return
    try:
        now = _read(path)
        if now is not None and now == dead:
            log.warning("%s was left by a process that is gone: taken over", path)
            remove(path)
    finally:
        guard.unlink(missing_ok=True)


def _wait_for_guard(guard: Path) -> None:
    end = time.monotonic() + _TAKEOVER_SECONDS
    while is_there(guard):
        if time.monotonic() > end or not guard.is_file():
            remove(guard)
        time.sleep(_POLL_SECONDS)


def _heartbeat(lock: Lock, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            if not lock.still_held():
                return
            os.utime(lock.path)
