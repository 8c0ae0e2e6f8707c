"""Vega: what draws the report's charts, in a page (its JavaScript) and to files (PNG, PDF).

vl-convert ships Vega, Vega-Lite and vega-embed inside its wheel and runs them without a browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.chart_specs import Spec

_PNG_SCALE = 2.0
_WIDTH = 560
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
    """`stem.png` and `stem.pdf`.

    Raises:
        NoCharts: the library is not installed.
    """
    library = _library()
    whole = {**spec, "data": {"values": list(values)}, "config": _PAPER}
    if "facet" not in spec:
        whole["width"] = _WIDTH
    drawn = {
        ".png": library.vegalite_to_png(whole, scale=_PNG_SCALE),
        ".pdf": library.vegalite_to_pdf(whole),
    }
    paths = []
    for suffix, content in drawn.items():
        path = stem.with_name(stem.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths
