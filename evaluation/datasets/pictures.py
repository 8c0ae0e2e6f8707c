"""Pictures that somebody else made: decoded to RGB by the same rules, or refused by name.

The first frame; grey is repeated; palettes are resolved; what is transparent lies on white; grey of
16 bit is value / 257, rounded, and colour of 16 bit its upper byte, which is what Pillow gives;
CMYK, YCbCr and the like by Pillow's `convert`, so that colour profiles count for nothing; last, the
turn or flip that EXIF asks for. A file of 8 bit RGB without that is what Pillow says it is, bit for
bit. Whole numbers of 32 bit and floats have no white of their own and are refused.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

MOST_PIXELS = 2**26  # 8192 x 8192; a file of few bytes can claim many more
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N")
_HELD_IN_32 = ("PNG", "PPM")  # formats whose mode "I" is 16 bit
_END_OF_JPEG = b"\xff\xd9"
_DAMAGE = (
    OSError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
)


def decode_picture(data: bytes, *, name: str) -> Image.Image:
    """A picture in RGB, by the rules above.

    Raises:
        ValueError: it is no picture, damaged, too large, or of a mode that has no rule.
    """
    with _named(name), Image.open(io.BytesIO(data)) as image:
        _check_size(image, name=name)
        turn = _TURNS.get(_orientation(image))
        picture = _in_rgb(image, name=name)
        return picture if turn is None else picture.transpose(turn)


def glance_at_picture(data: bytes, *, name: str) -> None:
    """Raises what can be told of a damaged or foreign file without decoding its pixels."""
    with _named(name), Image.open(io.BytesIO(data)) as image:
        _check_size(image, name=name)
        kind = image.format
        if kind != "TIFF":  # has no checksum, and Pillow warns
            image.verify()
    if kind in ("JPEG", "MPO") and data.rfind(_END_OF_JPEG) < len(data) // 2:
        raise ValueError(f"{name} ends in the middle; fetch it again")


def _check_size(image: Image.Image, *, name: str) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{name} is {width}x{height}; a picture has {MOST_PIXELS / 1e6:.0f} million "
            "pixels at most"
        )


def _orientation(image: Image.Image) -> int:
    """1 where there is none, or EXIF that cannot be read."""
    with contextlib.suppress(Exception):  # a camera's own notes are no reason to refuse a picture
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _in_rgb(image: Image.Image, *, name: str) -> Image.Image:
    if image.mode in _WIDE or (image.mode == "I" and image.format in _HELD_IN_32):
        levels = np.rint(np.asarray(image).astype(np.float64) / 257)
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has numbers of 32 bit, whose white nobody states; save it with 8 or 16 bit"
        )
    try:
        if image.has_transparency_data:
            opaque = image.convert("RGBA")
            white = Image.new("RGBA", opaque.size, "white")
            return Image.alpha_composite(white, opaque).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} has mode {image.mode!r}, which has no rule") from error


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """What Pillow raises of a file, as one line with the file's name."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels to be opened") from error
    except _DAMAGE as error:
        raise ValueError(f"{name} cannot be read as a picture; it is damaged or none") from error
