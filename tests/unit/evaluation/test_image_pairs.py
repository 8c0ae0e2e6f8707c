"""Folders from anywhere, paired by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.datasets.picture_files import folder_pictures
from evaluation.image_pairs import check_sizes, pair_names, prepare


def picture(seed: int, *, size: tuple[int, int] = (24, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_what_no_folder_shares_is_named_and_left_out_when_asked(tmp_path: Path) -> None:
    for folder, names in (("a", "xyz"), ("b", "yzw")):
        (tmp_path / folder).mkdir()
        for name in names:
            picture(0).save(tmp_path / folder / f"{name}.png")
    folders = {name: folder_pictures(tmp_path / name) for name in "ab"}
    with pytest.raises(ValueError, match=r"1 in a \(x\); 1 in b \(w\); --common compares the 2"):
        pair_names(folders, common=False)
    paired = pair_names(folders, common=True)
    assert paired.names == ("y", "z")
    assert paired.left_out == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="1 images have a partner"):
        pair_names({"a": {"x": folders["a"]["x"]}, "b": {"x": folders["a"]["x"]}}, common=True)


def test_a_png_stays_where_it_lies_and_all_else_is_decoded(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.mkdir()
    picture(1).save(source / "one.png")
    picture(2).save(source / "two.jpg", quality=90)
    picture(3).save(source / "three.webp", lossless=True)
    clear = picture(4).convert("RGBA")
    clear.putalpha(0)
    clear.save(source / "four.png")
    picture(5).save(source / "five.png", "JPEG")
    (source / "notes.txt").write_text("no picture")
    files = folder_pictures(source)
    ready = prepare(files, tmp_path / "ready", names=sorted(files))
    assert (ready.folder / "one.png").is_symlink()
    assert sorted(ready.lossy) == ["JPEG", "WEBP"]
    assert set(ready.sizes.values()) == {(24, 16)}
    read = {name: np.asarray(Image.open(ready.folder / f"{name}.png")) for name in files}
    assert (read["one"] == np.asarray(picture(1))).all()
    assert (read["three"] == np.asarray(picture(3))).all()
    assert (read["four"] == 255).all()  # what is transparent lies on white
    for name in ("two", "five"):
        assert Image.open(ready.folder / f"{name}.png").format == "PNG"


def test_pairs_of_unequal_sizes_are_named(tmp_path: Path) -> None:
    for folder, size in (("a", (24, 16)), ("b", (24, 24))):
        (tmp_path / folder).mkdir()
        picture(0, size=size).save(tmp_path / folder / "x.png")
        picture(0).save(tmp_path / folder / "y.png")
    a, b = (
        prepare(folder_pictures(tmp_path / name), tmp_path / f"r{name}", names="xy")
        for name in "ab"
    )
    with pytest.raises(ValueError, match=r"1 of 2 .*x: 24x16 and 24x24.*nothing is resized"):
        check_sizes(a, b, labels=("A", "B"))


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"nothing")
    files = folder_pictures(tmp_path / "a")
    with pytest.raises(ValueError, match=r"x\.png"):
        prepare(files, tmp_path / "ready", names="x")
