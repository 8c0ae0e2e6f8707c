"""The charts beside an experiment's table, as PNG and PDF, from what the table is made from.

Each file carries a digest of what it shows, so that a test sees a stale one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.report.chart_files import chart_stamp, read_stamp, write_chart
from evaluation.report.chart_specs import Names, Spec, error_over_steps, pareto
from evaluation.report.page_rows import axes, pareto_values
from evaluation.report.rows import Scored
from evaluation.report.tables import make_table
from evaluation.statistics import mean_over_runs
from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured

Chart = tuple[str, Spec, list[dict[str, Any]]]  # its file's stem, how it is drawn, and what
_Errors = dict[tuple[str, str, str, int], list[float]]  # model, method, bits, step -> of draws
_SUFFIXES = (".png", ".pdf")


def charts_of_cells(figure: str, cells: Sequence[Scored]) -> list[Chart]:
    """What a setup's `figure` draws of cells; models without a value have no chart.

    Raises:
        UserError: there is no such figure.
    """
    if figure not in _OF_CELLS:
        raise UserError(f"paper.figure={figure}; choose one of {', '.join(FIGURES)}")
    return [chart for chart in _OF_CELLS[figure](cells) if chart[2]]


def charts_of_measured(figure: str, measured: Measured) -> list[Chart]:
    """The same of a study's rows."""
    if figure != ERROR_OVER_TIME:
        raise UserError(f"paper.figure={figure} with a study; choose {ERROR_OVER_TIME}")
    return [chart for chart in _error_over_time(measured) if chart[2]]


def write_charts(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Two files a chart; one that shows the same already is left as it is."""
    written = []
    for stem, spec, values in charts:
        paths = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES]
        stamp = chart_stamp(spec, values)
        if not all(path.is_file() and read_stamp(path) == stamp for path in paths):
            write_chart(spec, values, folder / stem)
        written += paths
    return written


def _pareto(x_key: str, y_keys: Sequence[str]) -> Callable[[Sequence[Scored]], Iterator[Chart]]:
    def charts(cells: Sequence[Scored]) -> Iterator[Chart]:
        table = make_table(cells, title="")
        known = {axis.key: axis for axis in axes(table)}
        y = next((known[key] for key in y_keys if key in known), None)
        if x_key not in known or y is None:
            return
        for model in dict.fromkeys(row.pooled.record.model for row in table.rows):
            values = pareto_values(table, x=known[x_key], y=y, model=model)
            yield f"figure_{model}", pareto(known[x_key], y, _drawn(values)), values

    return charts


def _by_size(cells: Sequence[Scored]) -> Iterator[Chart]:
    """The step error over the number of calibration prompts, mean over draws."""
    found: _Errors = {}
    for cell in cells:
        record = cell.record
        error = record.metrics.get("step_error")
        if record.status != "ok" or error is None or not error.value:
            continue
        prompts = int(record.protocol["calibration_prompts"])
        key = (record.model, record.method_label, record.bits_label, prompts)
        found.setdefault(key, []).append(100 * error.value)
    yield from _curves(found, over="calibration prompts", log=True)


def _error_over_time(measured: Measured) -> Iterator[Chart]:
    found: _Errors = {}
    for row in measured.there:
        key = (str(row["model"]), str(row["method"]), str(row["bits"]), int(row["step"]))
        found.setdefault(key, []).append(100 * float(row["error"]))
    yield from _curves(found)


def _curves(found: _Errors, **of_axis: Any) -> Iterator[Chart]:
    """A line for each method and bits; a point with an error of 0 has no place."""
    for model in dict.fromkeys(key[0] for key in found):
        values = [
            _point(method, bits, step, errors)
            for (own, method, bits, step), errors in found.items()
            if own == model and min(errors) > 0
        ]
        yield f"figure_{model}", error_over_steps(_drawn(values), **of_axis), values


def _drawn(values: Sequence[dict[str, Any]]) -> Names:
    """The methods and bits that a chart has a point of: its legend names no others."""
    return Names(
        methods=list(dict.fromkeys(value["method"] for value in values)),
        bits=list(dict.fromkeys(value["bits"] for value in values)),
    )


def _point(method: str, bits: str, step: int, errors: Sequence[float]) -> dict[str, Any]:
    """With six digits, so that a chart's digest is that of any machine."""
    mean = sum(errors) / len(errors)
    low = high = mean
    if len(errors) > 1:
        interval = mean_over_runs(errors)
        low, high = max(interval.low, mean / _LEAST), interval.high
    numbers = {"error": mean, "low": low, "high": high}
    return {
        "method": method,
        "bits": bits,
        "step": step,
        **{name: float(f"{value:.6g}") for name, value in numbers.items()},
        "text": f"{mean:.3g}",
    }


_LEAST = 10.0  # a band ends at this part of its mean, as a logarithmic axis has no zero
ERROR_OVER_TIME = "error_over_time"
CONTACT_SHEETS = "contact_sheets"  # which every report has: they are kept, not drawn again
_OF_CELLS: Mapping[str, Callable[[Sequence[Scored]], Iterator[Chart]]] = {
    "speed_size": _pareto("weight_bytes", ("seconds_per_image",)),
    "quality_bytes": _pareto("weight_bytes", ("step_error", "psnr")),
    "by_size": _by_size,
}
FIGURES = (*_OF_CELLS, ERROR_OVER_TIME, CONTACT_SHEETS)
