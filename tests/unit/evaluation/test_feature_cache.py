"""Kept arrays are what was computed, or are computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.feature_cache import cached_array

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
