"""Kept arrays are what was computed, or are computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.feature_cache import cached_array, is_whole

DAMAGES: dict[str, Callable[[Path], object]] = {
    "a byte of the data": lambda path: path.write_bytes(
        path.read_bytes()[:-3] + b"\x01" + path.read_bytes()[-2:]
    ),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "another's": lambda path: np.save(path, np.zeros(3)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_made_again(tmp_path: Path, damage: str) -> None:
    made = []

    def compute() -> np.ndarray:
        made.append(damage)
        return np.arange(6.0).reshape(2, 3)

    def array() -> np.ndarray:
        return cached_array(tmp_path, kind="features", parts=["a", "b"], compute=compute)

    assert np.array_equal(array(), array())
    assert len(made) == 1
    (path,) = tmp_path.glob("features-*.npy")
    DAMAGES[damage](path)
    assert np.array_equal(array(), np.arange(6.0).reshape(2, 3))
    assert len(made) == 2
    array()
    assert len(made) == 2


def test_an_array_under_anothers_name_is_made_again(tmp_path: Path) -> None:
    """Whole, with a checksum that fits, and of other images."""

    def array(name: str, value: float) -> np.ndarray:
        return cached_array(
            tmp_path, kind="features", parts=[name], compute=lambda: np.full(3, value)
        )

    array("one", 1.0)
    (one,) = tmp_path.iterdir()
    array("two", 2.0)
    (two,) = set(tmp_path.iterdir()) - {one}
    two.write_bytes(one.read_bytes())
    assert is_whole(one)
    assert not is_whole(two)
    assert np.array_equal(array("two", 3.0), np.full(3, 3.0))


def test_an_upgrade_makes_features_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version of a package made is no stale reference for this one's."""
    from importlib import metadata

    made: list[str] = []

    def of(version: str) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: f"{name} {version}")
        cached_array(
            tmp_path,
            kind="features",
            parts=["a"],
            compute=lambda: (made.append(version), np.ones(1))[1],
        )

    for version in ("1", "1", "2", "1"):
        of(version)
    assert made == ["1", "2"]


def test_without_a_cache_no_part_is_asked_for() -> None:
    def parts():
        raise AssertionError("an image was hashed for nothing")
        yield ""

    assert cached_array(None, kind="x", parts=parts(), compute=lambda: np.ones(2)).sum() == 2
