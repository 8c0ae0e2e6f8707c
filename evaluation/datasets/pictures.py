"""Pictures that somebody else made: opened safely, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

MOST_PIXELS = 2**26  # 8192 x 8192; a file of few bytes can claim many more


def read_picture(path: Path) -> Image.Image:
    """A picture in RGB.

    Raises:
        ValueError: it is no picture, damaged, or too large.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(
                    f"{path} is {width}x{height}; a picture has {MOST_PIXELS / 1e6:.0f} million "
                    "pixels at most"
                )
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels to be opened") from error
    except (OSError, SyntaxError, EOFError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a picture; it is damaged or none") from error


def read_pictures(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """Each picture, when it is asked for.

    Raises:
        ValueError: one is damaged, or of another size than the first.
    """
    first: tuple[int, int] | None = None
    for path in paths:
        picture = read_picture(path)
        size = picture.size
        first = first or size
        if size != first:
            raise ValueError(
                f"{path} is {size[0]}x{size[1]}, {paths[0].name} is {first[0]}x{first[1]}; all "
                "pictures of a data set must have one size"
            )
        yield picture


def check_pictures(paths: Sequence[Path]) -> None:
    """Reads every picture once, and raises what `read_pictures` does."""
    for _ in read_pictures(paths):
        pass
