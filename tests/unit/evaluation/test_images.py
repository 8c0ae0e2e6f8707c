from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.images import check_ids, image_ids, load_images, to_float, write_png


def test_png_is_lossless_and_ordered_by_the_ids_given(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.integers(0, 256, (8, 6, 3), dtype=np.uint8) for name in ("a", "b", "c")
    }
    for name, array in arrays.items():
        write_png(tmp_path / f"{name}.png", array)
    images = load_images(tmp_path, ["c", "a", "b"])
    assert images.dtype == torch.uint8
    assert images.shape == (3, 8, 6, 3)
    for row, name in enumerate(("c", "a", "b")):
        assert np.array_equal(images[row].numpy(), arrays[name])
    floats = load_images(tmp_path, ["c", "a", "b"], as_float=True)
    assert floats.shape == (3, 3, 8, 6)
    assert torch.equal((floats * 255).round().to(torch.uint8).permute(0, 2, 3, 1), images)


def test_missing_and_extra_images_are_named(image_folder) -> None:
    folder = image_folder("set", ids=["p1", "p2", "stray"])
    with pytest.raises(ValueError, match=r"1 of 3 missing: p3; 1 not asked for: stray"):
        load_images(folder, ["p1", "p2", "p3"])
    with pytest.raises(ValueError, match=r"not asked for: stray"):
        load_images(folder, ["p1", "p2"])
    with pytest.raises(ValueError, match=r"more than once: p1"):
        load_images(folder, ["p1", "p1", "p2", "stray"])


def test_jpeg_is_refused(tmp_path: Path, image_folder) -> None:
    folder = image_folder("set", ids=["p1"])
    Image.new("RGB", (8, 8)).save(folder / "p2.jpg")
    with pytest.raises(ValueError, match="JPEG"):
        load_images(folder, ["p1"])
    (folder / "p2.jpg").rename(folder / "p2.png")  # a JPEG in disguise
    with pytest.raises(ValueError, match="holds JPEG, not PNG"):
        load_images(folder, ["p1", "p2"])
    with pytest.raises(ValueError, match="lossless"):
        write_png(tmp_path / "x.jpg", np.zeros((4, 4, 3), dtype=np.uint8))


def test_nothing_is_converted_silently(tmp_path: Path, image_folder) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        write_png(tmp_path / "x.png", np.zeros((4, 4, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="RGB"):
        write_png(tmp_path / "x.png", Image.new("L", (4, 4)))
    folder = image_folder("set", ids=["p1"])
    Image.new("RGBA", (32, 32)).save(folder / "p2.png")
    with pytest.raises(ValueError, match="only RGB"):
        load_images(folder, ["p1", "p2"])
    with pytest.raises(ValueError, match="uint8 of shape"):
        to_float(torch.zeros(1, 3, 4, 4))


def test_unequal_sizes_are_named(image_folder) -> None:
    folder = image_folder("set", ids=["p1"])
    image_folder("set", ids=["p2"], size=16)
    with pytest.raises(ValueError, match=r"p2\.png is 16x16, p1\.png is 32x32"):
        load_images(folder, ["p1", "p2"])


def test_an_id_may_begin_with_a_dot(tmp_path: Path) -> None:
    for name in (".x", "y"):
        write_png(tmp_path / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "._y.png").write_bytes(b"what some systems put beside every file")
    (tmp_path / "..x.png.12-ab.tmp").write_bytes(b"torn")
    assert image_ids(tmp_path) == [".x", "y"]
    check_ids(tmp_path, ["y", ".x"])
