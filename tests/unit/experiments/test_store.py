"""Stages are whole or not there, and agreed on between processes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.store import folders as module
from experiments.store.digests import digest
from experiments.store.folders import Store, verify


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
    verify(second.path)


def test_a_stage_that_fails_leaves_no_result_and_its_parts_are_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        store.build("kind", {}, fail)
    assert store.find("kind", digest({})) is None

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


def _text(content: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "x").write_text(content)

    return make


@pytest.mark.parametrize("content", ["abcd", "abd", None])
def test_a_damaged_stage_is_set_aside_and_made_again(tmp_path: Path, content: str | None) -> None:
    """Another size, the same size with another letter, a lost file."""
    store = Store(tmp_path)
    path = store.build("kind", {}, _text("abc")).path / "x"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    module._whole.clear()  # as a new process has it
    assert (store.build("kind", {}, _text("abc")).path / "x").read_text() == "abc"
    assert len(list((tmp_path / "stages" / "kind").glob("*.damaged-*"))) == 1


def test_a_torn_manifest_is_a_damaged_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    (stage.path / module.MANIFEST).write_text('{"files": ')
    assert store.find("kind", digest({})) is None
    assert store.build("kind", {}, _text("abc")).notes == {}


TEXTS = ("", "[]", "null", '{"files": 3}', "[" * 50_000, "\x00\xff")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_manifest_is_a_damaged_stage(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    (stage.path / module.MANIFEST).write_bytes(text.encode("latin-1"))
    assert store.find("kind", digest({})) is None
    assert store.build("kind", {}, _text("abc")).notes == {}


def test_a_manifest_is_in_its_own_checksum(tmp_path: Path) -> None:
    """A changed note is a changed result."""
    store = Store(tmp_path)
    stage = store.build("kind", {}, lambda folder: {"answer": 42})
    path = stage.path / module.MANIFEST
    path.write_text(path.read_text().replace("42", "43"))
    assert store.find("kind", digest({})) is None


def test_looking_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    (stage.path / "x").write_text("abcd")
    assert store.find("kind", digest({})) is None
    assert stage.path.is_dir()


def test_verify_compares_contents_not_only_sizes(tmp_path: Path) -> None:
    stage = Store(tmp_path).build("kind", {}, _text("abc"))
    (stage.path / "x").write_text("abd")
    with pytest.raises(UserError, match="not what was written"):
        verify(stage.path)


def test_a_manifest_names_every_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(folder: Path) -> None:
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        store.build("kind", {}, fail)
    stage = store.build("kind", {}, _text("abc"))
    attempts = json.loads((stage.path / module.MANIFEST).read_text())["attempts"]
    assert len(attempts) == 2
    assert attempts[0]["began_unix"] <= attempts[1]["began_unix"]
    assert not (stage.path / module.ATTEMPTS).exists()


def test_who_lost_the_lock_publishes_nothing_and_takes_what_the_other_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.folder("kind", digest({}))
    calls = 0

    def make(partial: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # judged dead while it worked; the other process finishes first
            (folder.with_suffix(".lock")).unlink()
            store.build("kind", {}, _text("theirs"))
            raise FileNotFoundError(partial)

    stage = store.build("kind", {}, make)
    assert (stage.path / "x").read_text() == "theirs"
    assert calls == 1


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_manifest", full)
    with pytest.raises(UserError, match="no space left on the disk of out="):
        Store(tmp_path).build("kind", {}, _text("abc"))


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom experiments.store.folders import Store\n"
        "def make(folder):\n"
        "    (Path(sys.argv[1]) / f'made-{sys.argv[2]}').touch(); time.sleep(0.5)\n"
        "Store(Path(sys.argv[1])).build('kind', {}, make)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*command, name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1
