"""Stages are whole or not there, and agreed on between processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import store as module
from experiments.errors import UserError
from experiments.store import Store, digest, verify


def test_the_hash_ignores_the_order_of_fields_and_sees_values() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> dict[str, int]:
        calls.append(folder)
        (folder / "x.txt").write_text("hello")
        return {"answer": 42}

    store = Store(tmp_path)
    first = store.build("kind", {"k": 1}, make)
    second = store.build("kind", {"k": 1}, make)
    assert len(calls) == 1
    assert (second.path / "x.txt").read_text() == "hello"
    assert second.notes == {"answer": 42}
    assert second.seconds == first.seconds
    assert store.build("kind", {"k": 2}, make).path != first.path
    verify(second)


def test_a_stage_that_fails_leaves_no_result_and_its_parts_are_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        store.build("kind", {}, fail)
    assert store.find("kind", {}) is None

    def go_on(folder: Path) -> None:
        assert (folder / "half.txt").read_text() == "half"
        (folder / "other.txt").write_text("rest")

    stage = store.build("kind", {}, go_on)
    assert sorted(p.name for p in stage.path.glob("*.txt")) == ["half.txt", "other.txt"]


def test_temporary_files_of_a_killed_run_are_swept_out(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / ".a.png.123.tmp").write_text("torn")
        (folder / "a.txt").write_text("a")

    stage = Store(tmp_path).build("kind", {}, make)
    assert not (stage.path / ".a.png.123.tmp").exists()


def test_a_damaged_stage_is_set_aside_and_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = store.build("kind", {}, lambda folder: (folder / "x").write_text("abc") and None)
    (stage.path / "x").write_text("abcd")
    assert store.find("kind", {}) is None
    store.build("kind", {}, lambda folder: (folder / "x").write_text("abc") and None)
    assert store.find("kind", {}) is not None
    assert len(list((tmp_path / "stages" / "kind").glob("*.damaged-*"))) == 1


def test_verify_compares_contents_not_only_sizes(tmp_path: Path) -> None:
    stage = Store(tmp_path).build("kind", {}, lambda f: (f / "x").write_text("abc") and None)
    (stage.path / "x").write_text("abd")
    with pytest.raises(UserError, match="not what was written"):
        verify(stage)


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    store = Store(tmp_path)
    lock = store.folder("kind", {}).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock.write_text(json.dumps({"host": os.uname().nodename, "pid": dead.pid}))
    assert store.build("kind", {}, lambda f: None).path.is_dir()
    assert not lock.exists()


def test_a_silent_owner_on_another_host_is_taken_over_late(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert not module._owner_is_dead(lock)
    old = time.time() - 1000
    os.utime(lock, (old, old))
    assert module._owner_is_dead(lock)


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom experiments.store import Store\n"
        "def make(folder):\n"
        "    (Path(sys.argv[1]) / f'made-{sys.argv[2]}').touch(); time.sleep(0.5)\n"
        "Store(Path(sys.argv[1])).build('kind', {}, make)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_source_digest_sees_every_line() -> None:
    assert module.source_digest("experiments") != module.source_digest("experiments/store.py")
