"""The report's charts as Vega-Lite specifications, without their values.

The page draws them with the values that its filters leave; `chart_files` draws the same to PNG and
PDF. Nothing is computed here: a value, an interval and a text are what the table's cells hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

_FEW_METHODS = 10  # of which each has a colour that is easily told from the others
_POINT_AREA = 55
_TICKS = 7
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [12, 4])
_FRONT_GREY = "#8a8f98"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows; `better` is "higher", "lower" or "" where neither is."""

    key: str
    title: str
    better: str = ""
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Names:
    """Every method and bit-width of the page: one has one colour or shape in all charts."""

    methods: Sequence[str]
    bits: Sequence[str]


def pareto(x: Axis, y: Axis, names: Names) -> Spec:
    """One point a row with its intervals; a line joins what no other row beats on both axes.

    Values: model, method, bits, x, y, x_low, x_high, y_low, y_high, x_text, y_text.
    """
    colour = {"color": _colour(names)}
    ends = [
        _rule("y_low", {"y": _quantity("y_low", y), "y2": {"field": "y_high"}, **colour}),
        _rule("x_low", {"x": _quantity("x_low", x), "x2": {"field": "x_high"}, **colour}),
    ]
    point = {
        "mark": {"type": "point", "filled": True, "size": _POINT_AREA, "opacity": 0.95},
        "encoding": {
            **colour,
            "shape": _shape(names),
            "tooltip": [
                _told("model", "model"),
                _told("method", "method"),
                _told("bits", "bits"),
                _told("x_text", x.title),
                _told("y_text", y.title),
            ],
        },
    }
    return {
        "height": 340,
        "encoding": {"x": _quantity("x", x), "y": _quantity("y", y)},
        "layer": [_front(x, y), *ends, point],
    }


def _front(x: Axis, y: Axis) -> Spec:
    """From the better end of x on, the rows whose y is better than any before."""
    best = "max" if y.better == "higher" else "min"
    worse_x = "descending" if x.better == "higher" else "ascending"
    worse_y = "descending" if y.better == "higher" else "ascending"
    return {
        "transform": [
            {
                "window": [{"op": best, "field": "y", "as": "best"}],
                "sort": [{"field": "x", "order": worse_x}, {"field": "y", "order": worse_y}],
                "frame": [None, 0],
            },
            {"filter": "datum.y === datum.best"},
        ],
        "mark": {
            "type": "line",
            "interpolate": "step-after",
            "color": _FRONT_GREY,
            "strokeWidth": 1,
            "strokeDash": [4, 3],
        },
        "encoding": {"order": {"field": "x", "sort": worse_x}},
    }


def error_over_steps(names: Names, *, over: str = "sampling step", log: bool = False) -> Spec:
    """The mean over prompts at each sampling step, in a band of its interval.

    Values: model, method, bits, step, error, low, high, text.

    Args:
        over: what the steps are, where it is not the sampling that takes them.
        log: whether they lie on a logarithmic axis.
    """
    x = {
        "field": "step",
        "type": "quantitative",
        "title": over,
        "axis": {"tickMinStep": 1, "format": "d"},
        "scale": {"nice": False} | ({"type": "log", "base": 2} if log else {}),
    }
    colour, dash = {"color": _colour(names)}, {"strokeDash": _dash(names)}
    told = [_told("method", "method"), _told("bits", "bits"), _told("step", over)]
    y = {"type": "quantitative", "scale": {"type": "log"}}
    title = _STEP_TITLE if not log else "step error, %"
    detail = {"detail": {"field": "bits"}}
    return {
        "height": 320,
        "encoding": {"x": x},
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.14},
                "encoding": {
                    "y": {"field": "low", "title": title, **y},
                    "y2": {"field": "high"},
                    **colour,
                    **detail,
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.6},
                "encoding": {"y": {"field": "error", "title": title, **y}, **colour, **dash},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 28},
                "encoding": {
                    "y": {"field": "error", "title": title, **y},
                    **colour,
                    "tooltip": [*told, _told("text", "error %")],
                },
            },
        ],
    }


_STEP_TITLE = "error of the step, %"


def error_by_layer(names: Names) -> Spec:
    """Each Linear's own error on the calibration's sampled rows, in the denoiser's order.

    Values: place, layer, method, bits, error, error_text, shape, kind, output, input, dual,
    negative, range.
    """
    told = [
        _told("layer", "layer"),
        _told("method", "method"),
        _told("bits", "bits"),
        _told("error_text", "relative error"),
        _told("shape", "in -> out"),
        _told("output", "output segments"),
        _told("input", "input segments"),
        _told("dual", "DualScale"),
        _told("negative", "negative inputs"),
        _told("range", "input range"),
    ]
    return {
        "height": 340,
        "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.8},
        "encoding": {
            "x": {
                "field": "place",
                "type": "quantitative",
                "title": "Linear, in the denoiser's order",
                "scale": {"nice": False, "zero": False},
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "y": {
                "field": "error",
                "type": "quantitative",
                "title": "relative error of the layer's output",
                "scale": {"type": "log"},
                "axis": {"format": ".0e"},
            },
            "color": _colour(names),
            "shape": {
                "field": "kind",
                "type": "nominal",
                "title": "Linear",
                "scale": {"domain": list(LAYER_KINDS), "range": list(_SHAPES[: len(LAYER_KINDS)])},
            },
            "tooltip": told,
        },
    }


LAYER_KINDS = ("plain", "output segments", "input segments", "both", "DualScale")


def histograms(*, title: str, of_codes: bool) -> Spec:
    """One small chart a layer. Values: layer, order, low, high, share, text."""
    return {
        "facet": {
            "field": "layer",
            "type": "nominal",
            "title": None,
            "sort": {"field": "order", "op": "min"},
            "header": {"labelLimit": 230, "labelFontSize": 11, "labelAnchor": "start"},
        },
        "columns": 3,
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
        "spec": {
            "width": 200,
            "height": 90,
            "mark": {"type": "bar", "color": "#7a8fb5" if of_codes else "#5b9a84"},
            "encoding": {
                "x": {
                    "field": "low",
                    "type": "quantitative",
                    "title": title,
                    "bin": {"binned": True},
                    "axis": {"tickCount": 5},
                },
                "x2": {"field": "high"},
                "y": {"field": "share", "type": "quantitative", "title": "%"},
                "tooltip": [_told("layer", "layer"), _told("text", "values")],
            },
        },
    }


def _quantity(field: str, axis: Axis) -> Spec:
    title = axis.title + {"higher": " (higher is better)", "lower": " (lower is better)"}.get(
        axis.better, ""
    )
    scale = {"type": "log"} if axis.log else {"zero": False}
    axis_ = {"tickCount": _TICKS}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis_}


def _rule(needed: str, encoding: Spec) -> Spec:
    return {
        "transform": [{"filter": f"isValid(datum.{needed})"}],
        "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.75},
        "encoding": encoding,
    }


def _told(field: str, title: str) -> Spec:
    return {"field": field, "title": title, "type": "nominal"}


def _colour(names: Names) -> Spec:
    scheme = "tableau10" if len(names.methods) <= _FEW_METHODS else "tableau20"
    scale = {"domain": list(names.methods), "scheme": scheme}
    return {
        "field": "method",
        "type": "nominal",
        "title": "method",
        "scale": scale,
        "legend": {"symbolOpacity": 1},
    }


def _shape(names: Names) -> Spec:
    return _by_bits(names, list(_SHAPES))


def _dash(names: Names) -> Spec:
    return _by_bits(names, [list(dash) for dash in _DASHES])


def _by_bits(names: Names, choices: list[Any]) -> Spec:
    """Repeated where there are more bit-widths than choices: the tooltip says which it is."""
    marks = [choices[number % len(choices)] for number in range(len(names.bits))]
    scale = {"domain": list(names.bits), "range": marks}
    return {"field": "bits", "type": "nominal", "title": "bits", "scale": scale}
