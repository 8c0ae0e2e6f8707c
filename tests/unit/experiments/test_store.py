"""Stages are whole or not there, and agreed on between processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.errors import UserError
from experiments.store import folders as module
from experiments.store.digests import digest
from experiments.store.folders import Store, verify
from experiments.store.journal import add_line
from experiments.store.unfinished import DONE, keep, kept


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
        keep(folder / "half.txt", b"half")
        (folder / "torn.txt").write_text("to")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        store.build("kind", {}, fail)
    assert store.find("kind", digest({})) is None

    def go_on(folder: Path) -> None:
        assert (folder / "half.txt").read_text() == "half"
        assert not (folder / "torn.txt").exists()
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


@pytest.mark.parametrize(
    ("answer", "was", "now"),
    [(42, "42", "43"), (0.1 + 0.2, "0.30000000000000004", "0.30000000000000005")],
)
def test_a_manifest_is_in_its_own_checksum(
    tmp_path: Path, answer: float, was: str, now: str
) -> None:
    """A changed note is a changed result; a changed byte is damage, though it reads the same."""
    store = Store(tmp_path)
    stage = store.build("kind", {}, lambda folder: {"answer": answer})
    path = stage.path / module.MANIFEST
    path.write_text(path.read_text().replace(was, now))
    assert now in path.read_text()
    assert store.find("kind", digest({})) is None


def test_looking_changes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    (stage.path / "x").write_text("abcd")
    assert store.find("kind", digest({})) is None
    assert stage.path.is_dir()


def test_a_file_with_the_manifests_name_deeper_down_is_in_it(tmp_path: Path) -> None:
    """Of a calibration and of a checkpoint; it was looked over once, and never checked."""

    def make(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / module.MANIFEST).write_text("abc")

    store = Store(tmp_path)
    stage = store.build("kind", {}, make)
    assert store.build("kind", {}, lambda folder: None).path == stage.path
    assert set(stage.files) == {f"inner/{module.MANIFEST}"}
    (stage.path / "inner" / module.MANIFEST).write_text("abd")
    assert store.build("kind", {}, lambda folder: None).files == {}


def test_a_file_that_is_not_the_stages_is_damage(tmp_path: Path) -> None:
    """A metric would refuse a picture that nobody asked for, for good."""
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    (stage.path / ".nfs0001").write_text("a file system's own")
    assert store.build("kind", {}, _text("xyz")).path.joinpath("x").read_text() == "abc"
    (stage.path / "other.png").write_text("a stranger")
    assert store.build("kind", {}, _text("xyz")).path.joinpath("x").read_text() == "xyz"


def test_anothers_folder_under_a_stages_name_is_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, two = (store.build("kind", {"k": k}, _text(k)).path for k in ("one", "two"))
    shutil.rmtree(one)
    shutil.copytree(two, one)
    assert store.find("kind", one.name) is None
    assert (store.build("kind", {"k": "one"}, _text("one")).path / "x").read_text() == "one"


def test_a_change_within_this_process_is_seen(tmp_path: Path) -> None:
    """A file is read once, and again when its size, times or inode are other ones."""
    store = Store(tmp_path)
    stage = store.build("kind", {}, _text("abc"))
    assert not store.build("kind", {}, _text("abc")).differs("x")
    times = (stage.path / "x").stat()
    (stage.path / "x").write_text("abd")
    os.utime(stage.path / "x", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stage.differs("x")
    assert stage.differs("no such file")


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("in the way"),
    "a loop": lambda path: path.symlink_to(path),
    "a dead link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a folder": lambda path: (path.mkdir(), (path / "x").mkdir()),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_what_lies_in_a_stages_place_does_not_stop_it(
    tmp_path: Path, obstacle: str, suffix: str
) -> None:
    store = Store(tmp_path)
    folder = store.folder("kind", digest({})).with_suffix(suffix)
    folder.parent.mkdir(parents=True)
    OBSTACLES[obstacle](folder)
    stage = store.build("kind", {}, _text("abc"))
    assert (stage.path / "x").read_text() == "abc"


@pytest.mark.parametrize("obstacle", ["a file", "a loop", "a dead link"])
@pytest.mark.parametrize("name", ["stages", "stages/kind"])
def test_what_lies_in_the_place_of_a_folder_of_stages_does_not_stop_it(
    tmp_path: Path, obstacle: str, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    OBSTACLES[obstacle](path)
    stage = Store(tmp_path).build("kind", {}, _text("abc"))
    assert (stage.path / "x").read_text() == "abc"
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


SPOILT: dict[str, Callable[[Path], object]] = {
    "a byte": lambda path: path.write_bytes(b"fi|st"),
    "half": lambda path: path.write_bytes(b"fi"),
    "empty": lambda path: path.write_bytes(b""),
    "another's": lambda path: path.write_bytes(b"second"),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", SPOILT)
def test_of_a_killed_call_only_what_is_whole_is_taken_up(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    made = []

    def make(folder: Path) -> dict[str, object]:
        for name in ("first", "second"):
            if name not in kept(folder) or not (folder / name).exists():
                made.append(name)
                (folder / name).write_text(name)
                keep(folder / name, name.encode(), length=len(name))
        if len(made) == 2:
            raise RuntimeError("killed")
        return {name: notes["length"] for name, notes in kept(folder).items()}

    with pytest.raises(RuntimeError, match="killed"):
        store.build("kind", {}, make)
    SPOILT[damage](store.folder("kind", digest({})).with_suffix(".partial") / "first")
    stage = store.build("kind", {}, make)
    assert made == ["first", "second", "first"]
    assert [(stage.path / name).read_text() for name in stage.files] == ["first", "second"]
    assert stage.notes == {"first": 5, "second": 6}
    assert len(json.loads((stage.path / module.MANIFEST).read_text())["attempts"]) == 2


@pytest.mark.parametrize("name", [DONE, module.ATTEMPTS])
@pytest.mark.parametrize("damage", [*SPOILT, "binary", "a list"])
def test_a_damaged_journal_costs_what_it_vouched_for(
    tmp_path: Path, name: str, damage: str
) -> None:
    store = Store(tmp_path)
    partial = store.folder("kind", digest({})).with_suffix(".partial")
    partial.mkdir(parents=True)
    (partial / "x").write_text("abc")
    keep(partial / "x", b"abc", finite=True)
    add_line(partial / module.ATTEMPTS, {"pid": 1})
    more = {"binary": lambda path: path.write_bytes(b"\xff\x00"), "a list": _list}
    (SPOILT | more)[damage](partial / name)
    stage = store.build("kind", {}, _text("abc"))
    assert set(stage.files) == {"x"}


def _list(path: Path) -> None:
    path.write_text("[]\n[1]\n")


def test_a_note_of_what_is_done_is_in_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("abc")
    keep(tmp_path / "x", b"abc", finite=False)
    assert kept(tmp_path) == {"x": {"finite": False}}
    journal = tmp_path / DONE
    journal.write_text(journal.read_text().replace("false", "true"))
    assert kept(tmp_path) == {}


@pytest.mark.parametrize("name", [".x.png", ".x", ".tmp"])
def test_a_name_may_begin_with_a_dot(tmp_path: Path, name: str) -> None:
    """An id's image; only what a process was writing under a name of its own goes."""

    def make(folder: Path) -> None:
        (folder / name).write_text("an image")
        (folder / f".{name}.123-0a1b2c3d.tmp").write_text("torn")

    assert set(Store(tmp_path).build("kind", {}, make).files) == {name}


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
