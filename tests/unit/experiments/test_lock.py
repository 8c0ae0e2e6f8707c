"""One owner at a time, and a dead one does not stop the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.store import lock as module
from experiments.store.lock import LockLost, is_dead, locked
from slurm import context


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.lock"


def _owner(**changes: object) -> str:
    return json.dumps({"token": "t", **context.process_identity(), **changes})


def test_the_lock_names_its_owner_and_is_gone_afterwards(path: Path) -> None:
    with locked(path) as lock:
        said = json.loads(path.read_text())
        assert said["pid"] == os.getpid()
        assert said["host"] == os.uname().nodename
        assert lock.still_held()
    assert not path.exists()


def test_a_dead_owners_lock_is_taken_over_at_once(path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = context.process_start(dead.pid)
    path.write_text(_owner(pid=dead.pid, started=started))
    assert not is_dead(json.loads(path.read_text()), silent_seconds=0)
    dead.communicate(b"")
    with locked(path):
        pass


def test_a_process_number_used_again_is_another_process(path: Path) -> None:
    owner = json.loads(_owner(started=1))
    assert is_dead(owner, silent_seconds=0)


def test_a_process_number_of_another_machine_or_container_says_nothing() -> None:
    owner = json.loads(_owner(machine="another boot", pid=1, started=1))
    assert not is_dead(owner, silent_seconds=module.DEAD_AFTER_SECONDS - 1)
    assert is_dead(owner, silent_seconds=module.DEAD_AFTER_SECONDS + 1)


def test_a_requeued_job_does_not_take_its_last_run_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm queues a job again when it loses a node; the node may be alive and at work."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    owner = json.loads(_owner(machine="another node", requeues=0))
    assert not is_dead(owner, silent_seconds=0)


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_clocks_of_two_machines_are_not_compared(
    path: Path, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """A beat that moves keeps a lock, however old or new the server's clock calls it."""
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.6)
    path.write_text(_owner(machine="elsewhere"))
    begun, released = time.monotonic(), threading.Event()

    def other_machine() -> None:
        for beat in range(20):
            stamp = time.time() + skew + beat
            os.utime(path, (stamp, stamp))
            time.sleep(0.1)
        released.set()
        path.unlink()

    thread = threading.Thread(target=other_machine)
    thread.start()
    with locked(path, poll_seconds=0.02):
        assert released.is_set()
    thread.join()
    assert time.monotonic() - begun > 1.0


def test_a_silent_owner_elsewhere_is_taken_over_late(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.3)
    path.write_text(_owner(machine="elsewhere"))
    begun = time.monotonic()
    with locked(path, poll_seconds=0.02):
        assert time.monotonic() - begun > 0.3


def test_an_empty_lock_does_not_last_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.3)
    path.touch()
    with locked(path, poll_seconds=0.02):
        assert path.read_text()


NOBODYS: dict[str, Callable[[Path], object]] = {
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "a number": lambda path: path.write_text("7"),
    "no token": lambda path: path.write_text('{"pid": 1}'),
    "a pid that is none": lambda path: path.write_text('{"token": "t", "pid": []}'),
    "binary": lambda path: path.write_bytes(b"\xff\x00\x80"),
    "nested": lambda path: path.write_text("[" * 50_000),
    "a folder": lambda path: (path.mkdir(), (path / "x").touch()),
    "a loop": lambda path: path.symlink_to(path),
    "a dead link": lambda path: path.symlink_to(path.with_name("nowhere")),
}


@pytest.mark.parametrize("kind", NOBODYS)
@pytest.mark.parametrize("guarded", [False, True])
def test_what_no_owner_writes_is_a_dead_owners(path: Path, kind: str, guarded: bool) -> None:
    """At once, and also where the guard of a takeover is such a thing."""
    NOBODYS[kind](path)
    if guarded and kind in ("a folder", "a loop", "a dead link"):
        NOBODYS[kind](path.with_name(f"{path.name}.takeover"))
    begun = time.monotonic()
    with locked(path, poll_seconds=0.02) as lock:
        assert lock.still_held()
    assert time.monotonic() - begun < module.DEAD_AFTER_SECONDS / 4
    assert not path.exists()


@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_lock_that_is_being_written_is_a_living_owners(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.3)
    path.write_text(_owner(token="0" * 32, machine="elsewhere")[:size])
    begun = time.monotonic()
    with locked(path, poll_seconds=0.02):
        assert time.monotonic() - begun > 0.3


def test_only_the_dead_lock_is_removed_and_not_the_next_ones(path: Path) -> None:
    """Two that judge an owner dead: the second must not remove the lock of the first."""
    path.write_text(_owner(pid=1, started=1, token="dead"))
    judged = module._read(path)
    assert judged is not None
    module._remove_dead(path, judged)
    first = module._create(path)
    assert first is not None
    module._remove_dead(path, judged)
    assert first.still_held()


def test_an_owner_that_was_taken_over_notices_and_leaves_the_new_lock(path: Path) -> None:
    with locked(path) as lock:
        path.write_text(_owner(token="another"))
        with pytest.raises(LockLost):
            lock.check()
    assert path.exists()


def test_many_processes_and_dead_owners_and_never_two_inside(path: Path) -> None:
    """Every process holds the lock many times; a third of them die with it in their hands."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom experiments.store.lock import locked\n"
        "path = Path(sys.argv[1])\n"
        "for turn in range(15):\n"
        "    with locked(path, poll_seconds=0.002):\n"
        "        inside = os.open(path.with_name(f'in'), os.O_CREAT | os.O_EXCL)\n"
        "        os.close(inside)\n"
        "        path.with_name('in').unlink()\n"
        "        if sys.argv[2] == 'dies' and turn == 9: os._exit(0)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    kinds = ["dies", "lives", "lives", "dies", "lives", "lives"]
    processes = [subprocess.Popen([*command, kind]) for kind in kinds]
    assert [process.wait(timeout=120) for process in processes] == [0] * len(kinds)


def test_a_full_disk_leaves_no_nameless_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "process_identity", full)
    with pytest.raises(OSError, match="No space"), locked(path):
        pass
    assert not path.exists()
