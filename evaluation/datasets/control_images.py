"""What is drawn from a picture for a ControlNet: edges, as the SegQuant authors draw them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

CANNY, CANNY_JPEG = "canny", "canny_jpeg"
DRAWINGS = (CANNY, CANNY_JPEG)
_LOW, _HIGH = 100, 200  # Canny's thresholds


def draw(drawing: str, picture: Image.Image) -> Image.Image:
    """The drawing of an RGB picture, at its own size, in three equal channels.

    `canny` is `cv2.Canny(gray, 100, 200)` without blur; `canny_jpeg` is what is left of it after
    a grey JPEG of Pillow's default quality, as the authors keep theirs.

    Raises:
        ValueError: OpenCV is not installed.
    """
    cv2 = _opencv()
    gray_HW = cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2GRAY)
    edges = Image.fromarray(cv2.Canny(gray_HW, _LOW, _HIGH))
    if drawing == CANNY_JPEG:
        buffer = io.BytesIO()
        edges.save(buffer, format="JPEG")
        edges = Image.open(buffer)
    return edges.convert("RGB")


def drawing_identity(drawing: str) -> str:
    """What decides a drawing beside its picture.

    Raises:
        ValueError: OpenCV is not installed.
    """
    return f"{drawing} opencv {_opencv().__version__}"


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            "dataset.control=canny needs OpenCV, which is not installed; "
            "pip install 'segquant-bench[canny]'"
        ) from error
    return cv2
