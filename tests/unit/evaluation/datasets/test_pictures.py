"""Pictures in every mode are decoded by a stated rule, wherever they lie; what is none is named."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.datasets.archives import archive_bytes, archive_names
from evaluation.datasets.picture_files import (
    PictureFile,
    check_present,
    folder_pictures,
)
from evaluation.datasets.pictures import decode_picture, glance_at_picture

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray[Any, Any]:
    picture = decode_picture(data, name="a picture")
    assert picture.mode == "RGB"
    return np.asarray(picture)


def half_red(mode: str) -> Image.Image:
    """The left of two pixels is red, the right one transparent (and green, which nobody sees)."""
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 255, 0, 0))
    return image if mode == "RGBA" else image.convert(mode)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, "PNG", transparency=1)


def test_rgb_is_what_pillow_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert np.array_equal(decoded(encoded(image, "PNG")), pixels)
    for kind in ("JPEG", "WEBP", "BMP", "TIFF"):
        data = encoded(image, kind)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decoded(data), expected), kind


@pytest.mark.parametrize(
    "data",
    [
        encoded(half_red("RGBA"), "PNG"),
        encoded(half_red("RGBA"), "WEBP", lossless=True),
        palette_with_transparency(),
        encoded(Image.fromarray(np.uint8([[RED, (0, 255, 0)]])), "PNG", transparency=(0, 255, 0)),
    ],
    ids=["RGBA", "webp", "palette", "a transparent colour"],
)
def test_what_is_transparent_lies_on_white(data: bytes) -> None:
    assert decoded(data).tolist() == [[list(RED), list(WHITE)]]


def test_half_transparent_grey_is_half_white() -> None:
    image = Image.new("LA", (1, 1), (0, 128))
    assert decoded(encoded(image, "PNG")).tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bit_is_scaled(kind: str) -> None:
    """Pillow's own conversion would clip all above 255 to white."""
    levels = np.uint16([[0, 128, 129, 257, 32768, 65535]])
    data = encoded(Image.fromarray(levels), kind)
    assert decoded(data)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize(
    ("image", "kind", "level"),
    [
        (Image.new("L", (1, 1), 77), "PNG", [77, 77, 77]),
        (Image.new("1", (1, 1), 1), "PNG", [255, 255, 255]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF", [255, 0, 0]),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG", [0, 0, 0]),
        (Image.new("RGB", (1, 1), RED).convert("P"), "GIF", [255, 0, 0]),
    ],
    ids=["grey", "one bit", "CMYK", "CMYK in JPEG", "palette"],
)
def test_other_modes(image: Image.Image, kind: str, level: list[int]) -> None:
    assert decoded(encoded(image, kind))[0, 0].tolist() == level


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_are_made(turn: int) -> None:
    """As Pillow's own function does it; a turned photograph is not its sensor's picture."""
    from PIL import ImageOps

    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(decoded(data), expected)
    assert (decoded(data).shape == (2, 3, 3)) is (turn < 5)


def test_the_first_frame_is_the_picture() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data)[0, 0].tolist() == list(RED)


def test_numbers_without_a_white_are_refused() -> None:
    for mode in ("F", "I"):
        data = encoded(Image.new(mode, (2, 2)), "TIFF")
        with pytest.raises(ValueError, match="a picture has numbers of 32 bit, whose white nobody"):
            decode_picture(data, name="a picture")


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_file_is_noticed_at_a_glance(kind: str) -> None:
    data = encoded(NOISE, kind)
    glance_at_picture(data, name="a picture")
    for read in (glance_at_picture, decode_picture):
        with pytest.raises(ValueError, match="a picture ") as caught:
            read(data[: len(data) // 2], name="a picture")
        assert "\n" not in str(caught.value)


def _zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def _tar(path: Path, contents: dict[str, bytes], *, mode: str) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


PACKED: dict[str, Callable[[Path, dict[str, bytes]], None]] = {
    "a.zip": _zip,
    "a.tar": lambda path, contents: _tar(path, contents, mode="w"),
    "a.gz": lambda path, contents: _tar(path, contents, mode="w:gz"),
}


@pytest.mark.parametrize("name", PACKED)
def test_members_are_read_in_place(name: str, tmp_path: Path) -> None:
    contents = {f"in/{n}.png": encoded(Image.new("RGB", (n + 1, 2)), "PNG") for n in range(3)}
    PACKED[name](tmp_path / name, contents)
    assert archive_names(tmp_path / name) == set(contents)
    for member in reversed(contents):  # also against the order of a compressed tar
        assert archive_bytes(tmp_path / name, member=member) == contents[member]
    picture = PictureFile(path=tmp_path / name, member="in/2.png")
    assert picture.read().size == (3, 2)
    assert picture.exists()
    missing = PictureFile(path=tmp_path / name, member="in/9.png")
    assert not missing.exists()
    with pytest.raises(ValueError, match=rf"{name} holds no in/9\.png"):
        missing.read()


def test_a_member_that_was_written_over_is_another(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    picture = PictureFile(path=path, member="a.png")
    _zip(path, {"a.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG")})
    before = picture.sha256()
    _zip(path, {"a.png": encoded(Image.new("RGB", (1, 1), "blue"), "PNG")})
    assert picture.sha256() != before
    assert np.asarray(picture.read())[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", PACKED)
def test_a_damaged_archive_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        archive_names(path)
    PACKED[name](path, {"a.png": encoded(NOISE, "PNG")})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=f"{name}.* (cannot be read|holds no)") as caught:
        PictureFile(path=path, member="a.png").read()
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_of_a_zip_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    _zip(path, {"a.png": encoded(NOISE, "PNG")})
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.zip: a\.png cannot be read \(Bad CRC"):
        PictureFile(path=path, member="a.png").glance()


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "._a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = folder_pictures(tmp_path)
    assert {name: picture.path.name for name, picture in found.items()} == {
        "a": "a.PNG",
        "b": "b.jpg",
    }
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="have one id; keep one"):
        folder_pictures(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        folder_pictures(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        folder_pictures(tmp_path / "empty")


def test_missing_pictures_are_counted(tmp_path: Path) -> None:
    pictures = {name: PictureFile(path=tmp_path / f"{name}.png") for name in "ab"}
    with pytest.raises(ValueError, match=r"dataset\.root=x: .*a\.png is missing \(2 of 2 are\)"):
        check_present(pictures, setting="dataset.root=x")


def test_a_mode_that_has_no_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    data = encoded(Image.new("RGB", (2, 2)), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.convert", refuse)
    with pytest.raises(ValueError, match="a picture has mode 'RGB', which has no rule"):
        decode_picture(data, name="a picture")
