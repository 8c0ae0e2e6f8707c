"""The columns of a table: what each takes from a record, and how a number is printed."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.metrics.metric_catalogue import all_metrics, shown
from evaluation.metrics.metric_interface import DELTA, FEATURES, Shown
from evaluation.records import Metric, Record
from evaluation.report.rows import CALIBRATION_DRAWS, DRAW, UNQUANTIZED

NOT_APPLICABLE = "n/a"
NO_VALUE = "-"  # the record does not hold it
HEADLINE_FROM = 2048  # images below which a distance that is biased then is no headline
IDENTICAL = "_identical"  # ends the name of the entry that counts what a mean leaves out
_BYTES_PER_MB = 1e6
_BYTES_PER_GB = 1e9
CODE_PRODUCTS = "extra_products_of_codes"  # in a record's protocol, of kernels told which code
_LARGEST_DECIMALS = 6
_ROUNDING = 1e-9  # a half-width of 0.1 in floating point is still one of 0.1


@dataclass(kw_only=True)
class Cell:
    """One cell: `text` for people, the rest in full precision; `marks` and `note` go under it."""

    text: str
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    marks: list[str] = field(default_factory=list)
    note: str = ""
    bold: bool = False


@dataclass(kw_only=True)
class Column:
    """`metric` names the metric that the cells show, where they show one.

    `per_image`: the column of scores whose mean it is, by which rows are compared.
    `shift_below_unquantized`: a value better than the unquantized model's is marked, never bold.
    `no_headline`: of too few images to be looked at first. `scale`: what is printed over the value.
    """

    key: str
    title: str
    legend: str
    cell: Callable[[Record], Cell]
    numeric: bool = True
    metric: str | None = None
    per_image: str = ""
    shift_below_unquantized: bool = False
    no_headline: bool = False
    scale: float = 1.0


def text_column(key: str, *, title: str, legend: str, text: Callable[[Record], str]) -> Column:
    def cell(record: Record) -> Cell:
        said = text(record)
        return Cell(text=said or NO_VALUE, value=said)

    return Column(key=key, title=title, legend=legend, cell=cell, numeric=False)


def metric_column(
    name: str,
    *,
    title: str,
    legend: str,
    per_image: str = "",
    scale: float = 1.0,
    digits: int = 2,
    shift_below_unquantized: bool = False,
    no_headline: bool = False,
) -> Column:
    """A column that shows `record.metrics[name]`; `scale` multiplies what is printed only.

    Where `NAME_identical` counts images that are left out of a mean, their number is beside it.
    """

    def cell(record: Record) -> Cell:
        metric = record.metrics.get(name)
        if metric is None:
            return Cell(text=NO_VALUE)
        cell = metric_cell(metric, scale=scale, digits=digits)
        identical = record.metrics.get(f"{name}{IDENTICAL}")
        if identical is not None and identical.value and math.isfinite(metric.value or 0.0):
            cell.text += f" (= {identical.value:.3g})"
        return cell

    return Column(
        key=name,
        title=title,
        legend=legend,
        cell=cell,
        metric=name,
        per_image=per_image or name,
        shift_below_unquantized=shift_below_unquantized,
        no_headline=no_headline,
        scale=scale,
    )


def number_column(
    key: str,
    *,
    title: str,
    legend: str,
    number: Callable[[Record], float | None],
    scale: float = 1.0,
    digits: int = 2,
) -> Column:
    """`scale` multiplies what is printed only."""

    def cell(record: Record) -> Cell:
        value = number(record)
        if value is None:
            return Cell(text=NO_VALUE)
        return Cell(text=format_number(value * scale, decimals=digits), value=value)

    return Column(key=key, title=title, legend=legend, cell=cell, scale=scale)


def metric_cell(metric: Metric, *, scale: float = 1.0, digits: int = 2) -> Cell:
    """`value ± sd`, or `value [low, high]`, to two digits of the uncertainty."""
    if metric.value is None:
        return Cell(text=NOT_APPLICABLE, note=metric.note)
    if metric.interval is None:
        text = format_number(metric.value * scale, decimals=digits)
        return Cell(text=text, value=metric.value)
    low, high = metric.interval
    half_width = (high - low) / 2 * scale
    decimals = _decimals(half_width, default=digits)

    def show(number: float) -> str:
        return format_number(number * scale, decimals=decimals)

    if metric.interval_kind == "sd":
        text = f"{show(metric.value)} ± {format_number(half_width, decimals=decimals)}"
    elif math.isclose(low, high, rel_tol=_ROUNDING):
        text = show(metric.value)
    else:
        text = f"{show(metric.value)} [{show(low)}, {show(high)}]"
    return Cell(text=text, value=metric.value, low=low, high=high)


def format_number(value: float, *, decimals: int) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{decimals}f}"
    if value != 0 and float(text) == 0 and decimals >= _LARGEST_DECIMALS:
        return f"{value:.1e}"
    return text.removeprefix("-") if float(text) == 0 else text


def _decimals(half_width: float, *, default: int) -> int:
    if not math.isfinite(half_width) or half_width <= 0:
        return default
    return min(_LARGEST_DECIMALS, max(0, 1 - math.floor(math.log10(half_width) + _ROUNDING)))


def granularity(record: Record) -> str:
    """`weights / activations`, from the record's protocol."""
    parts = [
        str(record.protocol.get(f"{side}_granularity", "")) for side in ("weight", "activation")
    ]
    if not any(parts):
        return str(record.protocol.get("granularity", ""))
    if "activation_dynamic" in record.protocol and parts[1]:
        parts[1] += " dynamic" if record.protocol["activation_dynamic"] else " static"
    return " / ".join(part or NO_VALUE for part in parts)


def default_columns(
    records: Sequence[Record],
    *,
    descriptions: Sequence[Shown] | None = None,
    costs: bool = False,
) -> list[Column]:
    """The columns of a comparison; a metric that no record knows gets none.

    Args:
        descriptions: of the metrics; None for those of every metric that is known here.
        costs: those of quantizing too.
    """
    if descriptions is None:
        descriptions = shown(all_metrics())
    present = {name for record in records for name in record.metrics}
    calibrated = [r for r in records if r.method not in UNQUANTIZED and r.status == "ok"]
    draws = {(r.protocol.get("calibration_prompts"), r.protocol.get(DRAW)) for r in calibrated}
    columns = _identity_columns(
        several_seeds=len({record.seed for record in records}) > 1,
        several_calibrations=len(draws) > 1,
    )
    columns += _metric_columns(descriptions, present=present, records=records)
    more = quantizing_columns() if costs else []
    return [*columns, *_cost_columns(), *more, _STATUS]


def expand(item: Shown, *, names: set[str]) -> list[Shown]:
    """The words for each feature extractor that `names` know; `per_image` is filled in."""
    extractors = _extractors(item.metric, names=names) | _extractors(item.per_image, names=names)
    return [_named(item, extractor=name) for name in sorted(extractors)] or (
        [] if FEATURES in item.metric else [_named(item, extractor="")]
    )


def _named(item: Shown, *, extractor: str) -> Shown:
    return replace(
        item,
        metric=item.metric.replace(FEATURES, extractor),
        title=item.title.replace(FEATURES, extractor),
        legend=item.legend.replace(FEATURES, extractor),
        per_image=(item.per_image or item.metric).replace(FEATURES, extractor),
    )


def _metric_columns(
    descriptions: Sequence[Shown], *, present: set[str], records: Sequence[Record]
) -> list[Column]:
    """By place; where neighbours are of feature extractors, each extractor's stand together."""
    columns: dict[str, Column] = {}
    ordered = sorted(descriptions, key=lambda item: item.place)
    for of_features, group in itertools.groupby(ordered, key=lambda item: FEATURES in item.metric):
        items = list(group)
        extractors = {name for item in items for name in _extractors(item.metric, names=present)}
        for extractor in sorted(extractors) if of_features else [""]:
            for item in (_named(item, extractor=extractor) for item in items):
                if item.metric in present:
                    columns.setdefault(item.metric, _shown_column(item, records=records))
    few = {item.key for item in columns.values() if item.no_headline}
    few |= {f"{key}{DELTA}" for key in few}  # the difference stays behind its distance
    return sorted(columns.values(), key=lambda column: column.key in few)


def _extractors(template: str, *, names: set[str]) -> set[str]:
    if FEATURES not in template:
        return set()
    before, after = template.split(FEATURES, 1)
    pattern = re.compile(f"{re.escape(before)}(.+){re.escape(after)}")
    return {match[1] for name in names if (match := pattern.fullmatch(name))}


def _shown_column(item: Shown, *, records: Sequence[Record]) -> Column:
    title, legend, few = item.title, item.legend, False
    if item.biased_below is not None:
        title += _bias(item.metric, records=records, biased_below=item.biased_below)
        few = 0 < _fewest(item.metric, records=records) < HEADLINE_FROM
    if few:
        legend += f"; of fewer than {HEADLINE_FROM:,} images it is no headline and stands last"
    return metric_column(
        item.metric,
        title=title,
        legend=legend,
        no_headline=few,
        per_image=item.per_image,
        scale=item.scale,
        digits=item.digits,
        shift_below_unquantized=item.shift_below_unquantized,
    )


def _sizes(name: str, *, records: Sequence[Record]) -> list[int]:
    measured = (record.metrics.get(name) for record in records)
    return sorted({m.n for m in measured if m is not None and m.value is not None})


def _fewest(name: str, *, records: Sequence[Record]) -> int:
    """Images of any row; 0 where none was measured."""
    return min(_sizes(name, records=records), default=0)


def _bias(name: str, *, records: Sequence[Record], biased_below: int) -> str:
    sizes = _sizes(name, records=records)
    if not sizes or sizes[0] >= biased_below:
        return ""
    return f" (biased, n = {', '.join(map(str, sizes))})"


def calibration(record: Record) -> str:
    """How many prompts a row was calibrated with, and how many draws of them it is of."""
    if record.method in UNQUANTIZED or record.status != "ok":
        return ""
    prompts = record.protocol.get("calibration_prompts")
    draws = record.protocol.get(CALIBRATION_DRAWS, 1)
    said = "" if prompts is None else f"{prompts} prompts"
    return f"{said}, {draws} draws" if draws > 1 else said


def _identity_columns(*, several_seeds: bool, several_calibrations: bool) -> list[Column]:
    columns = [
        text_column("model", title="Model", legend="model, by its key", text=lambda r: r.model),
        text_column(
            "method",
            title="Method",
            legend="method, by its key; key=value: a setting that is not its yaml's",
            text=lambda r: r.method_label,
        ),
        text_column("bits", title="Bits", legend="bit-width setting", text=lambda r: r.bits_label),
        text_column(
            "granularity",
            title="W / A granularity",
            legend="one scale per what, for weights / activations",
            text=granularity,
        ),
    ]
    if several_calibrations:
        columns.append(
            text_column(
                "calibration",
                title="Calibration",
                legend="prompts that the row was calibrated with, and how many draws of them it is "
                "the mean of; its intervals are then over draws and prompts",
                text=calibration,
            )
        )
    if several_seeds:
        columns.append(
            text_column("seed", title="Seed", legend="the cell's seed", text=lambda r: str(r.seed))
        )
    return columns


def _cost_columns() -> list[Column]:
    return [
        number_column(
            "effective_bits_per_weight",
            title="Bits/weight",
            legend="effective bits per weight of the quantized Linears; float32 scales, smoothing "
            "and low-rank factors counted",
            number=lambda r: r.effective_bits_per_weight,
        ),
        number_column(
            "weight_bytes",
            title="Weights MB",
            legend="the whole denoiser as stored, in 10^6 bytes; what is not quantized "
            "(convolutions, norms, biases) in 16 bit",
            number=lambda r: r.weight_bytes,
            scale=1 / _BYTES_PER_MB,
        ),
        Column(
            key="seconds_per_image",
            title="s/image",
            legend="seconds per image; n/a where quantization is simulated: its speed says nothing",
            cell=_speed_cell,
        ),
    ]


def quantizing_columns() -> list[Column]:
    """What quantizing a model takes once, and what its products take ever after."""
    return [
        number_column(
            "extra_macs_fraction",
            title="Extra products %",
            legend="multiply-accumulates of DualScale, low rank and rotations beyond a plain "
            "Linear's, over all Linears'; of the inputs' code that ran, where one was chosen",
            number=_extra_products,
            scale=100,
        ),
        number_column(
            "calibration_forwards",
            title="Calibration forwards",
            legend="of the denoiser",
            number=lambda r: r.calibration_forwards or None,
            digits=0,
        ),
        number_column(
            "quantize_seconds",
            title="Seconds to quantize",
            legend="once, after the calibration, on the machine of the record; of a row of several "
            "draws, the first's",
            number=lambda r: r.seconds.get("quantize"),
        ),
        number_column(
            "quantize_peak_memory_bytes",
            title="Peak GB to quantize",
            legend="of the process meanwhile, the model in it, in 10^9 bytes",
            number=lambda r: r.quantize_peak_memory_bytes,
            scale=1 / _BYTES_PER_GB,
        ),
    ]


def _extra_products(record: Record) -> float | None:
    found: float | None = record.protocol.get(CODE_PRODUCTS, record.extra_macs_fraction)
    return found


def _speed_cell(record: Record) -> Cell:
    if record.execution in ("simulated", "library_simulated"):
        return Cell(text=NOT_APPLICABLE)
    metric = record.metrics.get("seconds_per_image")
    if metric is not None:
        return metric_cell(metric, digits=3)
    value: Any = record.seconds.get("seconds_per_image")
    if value is None:
        return Cell(text=NO_VALUE)
    return Cell(text=format_number(value, decimals=3), value=value)


def _status_cell(record: Record) -> Cell:
    note = record.reason if record.status != "ok" else ""
    return Cell(text=record.status, value=record.status, note=note)


_STATUS = Column(
    key="status",
    title="Status",
    legend="ok, skipped, failed or missing, with the reason below",
    cell=_status_cell,
    numeric=False,
)
