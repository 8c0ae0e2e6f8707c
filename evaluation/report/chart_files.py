"""Vega: what draws the report's charts, in a page (its JavaScript) and to files (PNG, PDF).

vl-convert ships Vega, Vega-Lite and vega-embed inside its wheel and runs them without a browser.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from evaluation.report.chart_specs import Spec

_PNG_SCALE = 2.0
_WIDTH = 560
_STAMP = "drawn-from"
_PAPER = {  # of the files; the page has its own colours, light and dark
    "background": "white",
    "font": "DejaVu Sans",
    "axis": {"gridColor": "#e6e6e6", "labelFontSize": 11, "titleFontSize": 11},
    "legend": {"labelFontSize": 10, "titleFontSize": 11, "labelLimit": 260, "symbolLimit": 0},
    "view": {"stroke": None},
}


class NoCharts(RuntimeError):  # noqa: N818 - says what to do, not that something broke
    """The library that draws is not installed."""


def _library() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise NoCharts(
            "the report's charts are drawn by vl-convert-python, which is not installed; "
            "pip install 'segquant-bench[report]'"
        ) from error
    return vl_convert


def chart_javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script for an HTML page, in `window.vegaEmbed`.

    Raises:
        NoCharts: the library is not installed.
    """
    script: str = _library().javascript_bundle()
    return script


def write_chart(spec: Spec, values: Sequence[dict[str, Any]], stem: Path) -> list[Path]:
    """`stem.png` and `stem.pdf`, each with the stamp of what it was drawn from.

    Raises:
        NoCharts: the library is not installed.
    """
    library = _library()
    whole = _whole(spec, values)
    stamp = chart_stamp(spec, values)
    drawn = {
        ".png": stamped_png(library.vegalite_to_png(whole, scale=_PNG_SCALE), stamp),
        ".pdf": stamped_pdf(library.vegalite_to_pdf(whole), stamp),
    }
    paths = []
    for suffix, content in drawn.items():
        path = stem.with_name(stem.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def _whole(spec: Spec, values: Sequence[dict[str, Any]]) -> Spec:
    whole = {**spec, "data": {"values": list(values)}, "config": _PAPER}
    return whole if "facet" in spec else {**whole, "width": _WIDTH}


def chart_stamp(spec: Spec, values: Sequence[dict[str, Any]]) -> str:
    """What a chart is drawn from, as a digest: a picture whose stamp is another is a stale one."""
    text = json.dumps(_whole(spec, values), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stamped_png(content: bytes, stamp: str) -> bytes:
    """The picture with the stamp as a text chunk, which viewers pass over."""
    said = PngImagePlugin.PngInfo()
    said.add_text(_STAMP, stamp)
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        picture.save(buffer, format="PNG", pnginfo=said, optimize=True)
    return buffer.getvalue()


def stamped_pdf(content: bytes, stamp: str) -> bytes:
    """The file with the stamp as a comment behind its end, which readers pass over."""
    return content.rstrip() + f"\n%{_STAMP} {stamp}\n".encode()


def read_stamp(path: Path) -> str | None:
    """The stamp of a picture, or None where it has none."""
    if path.suffix == ".pdf":
        last = path.read_bytes().rstrip().rpartition(b"\n")[2].decode("latin-1")
        return last.removeprefix(f"%{_STAMP} ") if last.startswith(f"%{_STAMP} ") else None
    with Image.open(path) as picture:
        stamp = picture.info.get(_STAMP)
    return None if stamp is None else str(stamp)
