"""Checksums of large files: read once, and never taken from a damaged cache."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.datasets.picture_files import PictureFile
from experiments.store import file_hashes
from experiments.store.digests import file_digest
from experiments.store.file_hashes import FileHashes


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_a_file_is_read_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileHashes(tmp_path / "cache.json")
    assert files.of(weights) == file_digest(weights)
    files.keep()
    monkeypatch.setattr(file_hashes, "file_digest", None)
    assert FileHashes(tmp_path / "cache.json").of(weights) == file_digest(weights)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"files": {}}', "[" * 50_000, "\x00\xff"], ids=range(7)
)
def test_a_damaged_cache_is_thrown_away(weights: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache.json"
    cache.write_bytes(text.encode("latin-1"))
    files = FileHashes(cache)
    assert files.of(weights) == file_digest(weights)
    files.keep()
    assert FileHashes(cache).of(weights) == file_digest(weights)


def test_a_changed_digit_is_seen(weights: Path, tmp_path: Path) -> None:
    """It would make every stage another: all would be computed again without a word."""
    cache = tmp_path / "cache.json"
    files = FileHashes(cache)
    files.of(weights)
    files.keep()
    content = json.loads(cache.read_text())
    (label,) = content["files"]
    content["files"][label] = "0" * 64
    cache.write_text(json.dumps(content))
    assert FileHashes(cache).of(weights) == file_digest(weights)


def test_a_cache_that_cannot_be_written_costs_time_alone(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "cache.json").mkdir()
    files = FileHashes(tmp_path / "cache.json")
    assert files.of(weights) == file_digest(weights)
    files.keep()


def _rewrite(path: Path) -> None:
    path.write_bytes(b"WEIGHTS")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    other.replace(path)


@pytest.mark.parametrize("change", [_rewrite, _replace])
def test_a_change_under_the_same_size_and_time_is_seen(
    weights: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    files = FileHashes(tmp_path / "cache.json")
    before, times = files.of(weights), weights.stat()
    files.keep()
    change(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_mtime_ns == times.st_mtime_ns
    assert FileHashes(tmp_path / "cache.json").of(weights) == file_digest(weights) != before


def test_a_picture_in_a_zip_is_read_once_for_as_long_as_the_zip_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, cache = tmp_path / "a.zip", tmp_path / "cache.json"
    pictures = [PictureFile(path=archive, member=name) for name in ("a.png", "b.png")]
    _zip(archive, {"a.png": b"first", "b.png": b"second"})
    files = FileHashes(cache)
    found = [files.of_picture(picture) for picture in pictures]
    assert found == [hashlib.sha256(content).hexdigest() for content in (b"first", b"second")]
    files.keep()
    assert FileHashes(cache).changed() == []

    def refuse(picture: PictureFile) -> str:
        raise AssertionError(f"{picture.name} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(PictureFile, "sha256", refuse)
        assert [FileHashes(cache).of_picture(picture) for picture in pictures] == found
    _zip(archive, {"a.png": b"other", "b.png": b"second"})
    again = [FileHashes(cache).of_picture(picture) for picture in pictures]
    assert again[0] != found[0]
    assert again[1] == found[1]


def test_a_member_that_changed_under_its_archives_times_is_found(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    _zip(archive, {"a.png": b"first"})
    files = FileHashes(tmp_path / "cache.json")
    files.of_picture(PictureFile(path=archive, member="a.png"))
    (label,) = files._known
    files._known[label] = "0" * 64
    assert files.changed() == [archive]
    archive.unlink()
    assert files.changed() == []


def _zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def test_all_that_is_known_can_be_read_again(weights: Path, tmp_path: Path) -> None:
    """For a change that no time tells of."""
    files = FileHashes(tmp_path / "cache.json")
    files.of(weights)
    assert files.changed() == []
    (label,) = files._known
    files._known[label] = "0" * 64
    assert files.changed() == [weights]
    weights.unlink()
    assert files.changed() == []
