"""The true images' stage follows the contents of the user's files, not their names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.images import write_png
from experiments.cell.sweep import open_sweep
from experiments.cell.true_images import LISTING, TrueImages
from experiments.config.request import read_request


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rows = [{"id": name, "prompt": f"circle {name}"} for name in ("e0", "x")]
    rows += [{"id": "c", "prompt": "square", "split": "calibration"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("e0", "x"):
        _paint(tmp_path / "pictures" / f"{name}.png", 10)
    return tmp_path / "pictures"


def _paint(path: Path, level: int) -> None:
    write_png(path, np.full((16, 16, 3), level, np.uint8))


def _stage(top: Path, folder: Path) -> TrueImages:
    words = [
        *("dataset=prompts", f"dataset.path={top / 'p.jsonl'}", f"dataset.images={folder}"),
        *("dataset.evaluation_prompts=2", "dataset.calibration_prompts=1", f"out={top / 'runs'}"),
    ]
    stage = open_sweep(read_request(words, multirun=False)).cells[0].true_images
    assert stage is not None
    return stage


def _level(stage: TrueImages, name: str) -> int:
    return int(np.asarray(stage.pictures()[name].read()).mean())


def _in_place(path: Path) -> None:
    """Written over with size and time kept, as `rsync --times` or `touch -r` leave it."""
    times = path.stat()
    other = path.with_suffix(".other")
    _paint(other.with_suffix(".png"), 200)
    path.write_bytes(other.with_suffix(".png").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written again": lambda path: _paint(path, 200),
    "times kept": _in_place,
    "linked elsewhere": lambda path: (
        _paint(path.parent.parent / "other.png", 200),
        path.unlink(),
        path.symlink_to(path.parent.parent / "other.png"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["e0", "x"])
def test_pictures_replaced_at_one_path_are_others(
    tmp_path: Path, pictures: Path, change: str, name: str
) -> None:
    assert _level(_stage(tmp_path, pictures), name) == 10
    CHANGES[change](pictures / f"{name}.png")
    stage = _stage(tmp_path, pictures)
    assert stage.find() is None
    assert _level(stage, name) == 200


def test_the_same_pictures_elsewhere_are_the_same(tmp_path: Path, pictures: Path) -> None:
    """They are looked for where they are now, not where the list was made."""
    before = _stage(tmp_path, pictures)
    assert before.pictures()["x"].path == pictures / "x.png"
    shutil.move(pictures, tmp_path / "moved")
    _paint(tmp_path / "moved" / "of another prompt.png", 5)
    after = _stage(tmp_path, tmp_path / "moved")
    assert after.hash == before.hash
    assert _level(after, "x") == 10


def test_nothing_is_copied(tmp_path: Path, pictures: Path) -> None:
    finished = _stage(tmp_path, pictures).build()
    assert [path.name for path in finished.path.iterdir() if path.name != "manifest.json"] == [
        LISTING
    ]
    rows = json.loads((finished.path / LISTING).read_text())
    content = (pictures / "e0.png").read_bytes()
    assert rows[0] == {
        "id": "e0",
        "path": str(pictures / "e0.png"),
        "member": None,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": [16, 16],
    }


def test_a_missing_picture_is_told_when_it_is_needed(tmp_path: Path, pictures: Path) -> None:
    (pictures / "e0.png").unlink()
    stage = _stage(tmp_path, pictures)
    assert stage.find() is None
    with pytest.raises(ValueError, match=r"e0\.png is missing"):
        stage.build()
