"""The page's charts as files for a paper: PNG and PDF, from the same specifications and values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.report.chart_files import write_chart
from evaluation.report.chart_specs import (
    Spec,
    error_by_layer,
    error_over_steps,
    histograms,
    pareto,
)
from evaluation.report.page_data import Histogram, PageData, RowExtras
from evaluation.report.page_rows import axes, first_axes, names_of, pareto_values

_SAFE = re.compile(r"[^A-Za-z0-9.-]+")


def write_figures(page: PageData, folder: Path) -> list[Path]:
    """Two files a chart and model, of layers also a bit-width; none where nothing is drawn."""
    written = []
    for name, spec, values in _figures(page):
        if values:
            written += write_chart(spec, values, folder / _SAFE.sub("_", name))
    return written


def _figures(page: PageData) -> Iterator[tuple[str, Spec, list[dict[str, Any]]]]:
    names, known = names_of(page.table), axes(page.table)
    rows = [row.pooled.record for row in page.table.rows]
    for model in dict.fromkeys(record.model for record in rows):
        if known:
            x, y = first_axes(known)
            values = pareto_values(page.table, x=x, y=y, model=model)
            yield f"pareto_{model}", pareto(x, y, names), values
        yield f"steps_{model}", error_over_steps(names), step_values(page, model)
        for bits in names.bits:
            spec = error_by_layer(names)
            yield f"layers_{model}_{bits}", spec, layer_values(page, model, bits)
    for key, shown in page.activations.items():
        model = next(r.model for r, e in zip(rows, page.rows, strict=True) if e.inputs == key)
        spec = histograms(title="input of the Linear", of_codes=False)
        yield f"inputs_{model}_{key}", spec, histogram_values(list(shown))


def step_values(page: PageData, model: str) -> list[dict[str, Any]]:
    """What `chart_specs.error_over_steps` draws; a row that is exact at a step has no place."""
    values = []
    for row, extras in zip(page.table.rows, page.rows, strict=True):
        record = row.pooled.record
        if record.model != model or not all(_is_drawn(point.mean) for point in extras.steps):
            continue
        for number, point in enumerate(extras.steps, 1):
            low = point.low if point.low and point.low > 0 else point.mean
            values.append(
                {
                    "method": record.method_label,
                    "bits": record.bits_label,
                    "step": number,
                    "error": point.mean,
                    "low": low,
                    "high": point.mean if point.high is None else point.high,
                    "text": f"{point.mean:.3g}",
                }
            )
    return values


def _is_drawn(value: float) -> bool:
    return math.isfinite(value) and value > 0


def layer_values(page: PageData, model: str, bits: str) -> list[dict[str, Any]]:
    """What `chart_specs.error_by_layer` draws."""
    return [
        value
        for row, extras in zip(page.table.rows, page.rows, strict=True)
        if (row.pooled.record.model, row.pooled.record.bits_label) == (model, bits)
        for value in _of_layers(extras, row.pooled.record.method_label, bits, page)
    ]


def _of_layers(
    extras: RowExtras, method: str, bits: str, page: PageData
) -> Iterator[dict[str, Any]]:
    inputs = page.inputs.get(extras.inputs, {})
    for place, point in enumerate(extras.layers, 1):
        if point.error is None or not _is_drawn(point.error):
            continue
        seen = inputs.get(point.name)
        yield {
            "place": place,
            "layer": point.name,
            "method": method,
            "bits": bits,
            "error": point.error,
            "error_text": f"{point.error:.3g}",
            "shape": point.shape,
            "kind": point.kind,
            "output": point.output_segments or "one",
            "input": point.input_segments or "one",
            "dual": point.dual_scale or "no",
            "negative": "-" if seen is None else f"{100 * seen.negative_share:.1f} %",
            "range": "-" if seen is None else f"{seen.low:.3g} to {seen.high:.3g}",
        }


def histogram_values(shown: list[Histogram]) -> list[dict[str, Any]]:
    """What `chart_specs.histograms` draws."""
    values = []
    for order, one in enumerate(shown):
        width = (one.high - one.low) / len(one.shares)
        for number, share in enumerate(one.shares):
            low = one.low + number * width
            values.append(
                {
                    "layer": one.layer,
                    "order": order,
                    "low": low,
                    "high": low + width,
                    "share": share,
                    "text": f"{low:.3g}: {share} %",
                }
            )
    return values
