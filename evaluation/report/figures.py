"""Pictures to look at: the same prompts under each method, and a chart of one metric."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from evaluation.images import write_png
from evaluation.records import Metric, Record

LARGEST_GAIN = 128
CELL_SIDE = 128  # smaller images are enlarged by a whole factor to about this many pixels
_GAP = 6
_FONT_SIZE = 14
_LINE_HEIGHT = 18
_CAPTION_LINES = 6
_LABEL_WIDTH_MAX = 260
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (60, 60, 60)
_POINT_SIZE_INCHES = 0.35
_BRIGHT_PERCENTILE = 99.0  # of a group's differences; brighter ones may be cut off
_MAP_OCTAVES = 3  # colours of a map of ratios end at a factor of eight

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Difference = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(kw_only=True)
class _Layout:
    label_width: int
    caption_height: int
    cell_width: int
    cell_height: int
    columns: int

    def origin(self, row: int, column: int) -> tuple[int, int]:
        x = _GAP + self.label_width + _GAP + column * (self.cell_width + _GAP)
        y = _GAP + self.caption_height + _GAP + row * (self.cell_height + _GAP)
        return x, y

    def size(self, rows: int) -> tuple[int, int]:
        return self.origin(rows, self.columns)


def contact_sheet(
    rows: Mapping[str, Path | str],
    ids: Sequence[str],
    prompts: Mapping[str, str],
    reference_label: str,
    out_path: Path | str,
    *,
    groups: Mapping[str, str] | None = None,
    gain: int | None = None,
    cell_side: int = CELL_SIDE,
) -> tuple[int, int]:
    """One column a prompt, one row a method, then each method's difference to the reference.

    Args:
        rows: label to folder of `{id}.png`, in the order in which they are drawn.
        ids: the prompts to show; folders may hold more.
        reference_label: the row that the differences are taken against.
        groups: label to group, such as its bits; the differences of a group are drawn alike.
        gain: |image - reference| is multiplied by this, so that small differences can be seen;
            None: the largest power of two at which 99 % of a group's are not cut off.

    Returns:
        Width and height in pixels of the PNG written to `out_path`.
    """
    _check_request(rows, ids=ids, prompts=prompts, reference_label=reference_label)
    groups = groups or {}
    strangers = [label for label in groups if label not in rows]
    if strangers:
        raise ValueError(f"groups name {strangers}; the rows are {', '.join(rows)}")
    pictures = {
        label: [_read(Path(folder) / f"{name}.png") for name in ids]
        for label, folder in rows.items()
    }
    reference = pictures[reference_label]
    lines = dict(pictures)
    differences = {
        label: [_difference(a, b) for a, b in zip(images, reference, strict=True)]
        for label, images in pictures.items()
        if label != reference_label
    }
    alike: dict[str | None, list[_Difference]] = {}
    for label, arrays in differences.items():
        alike.setdefault(groups.get(label), []).extend(arrays)
    gains = {group: _gain(arrays) if gain is None else gain for group, arrays in alike.items()}
    for label, arrays in differences.items():
        factor = gains[groups.get(label)]
        lines[f"|{label} - {reference_label}| x {factor}"] = [
            Image.fromarray((array * factor).clip(0, 255).astype(np.uint8)) for array in arrays
        ]
    font = ImageFont.load_default(_FONT_SIZE)
    layout = _plan(lines, reference=reference, cell_side=cell_side, font=font)
    sheet = Image.new("RGB", layout.size(len(lines)), _WHITE)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(ids):
        x, _ = layout.origin(0, column)
        text = _wrap(prompts[name], font=font, width=layout.cell_width, lines=_CAPTION_LINES)
        _write_bottom(draw, text, x=x, bottom=_GAP + layout.caption_height, font=font)
    for row, (label, images) in enumerate(lines.items()):
        _draw_row(sheet, draw, label=label, images=images, row=row, layout=layout, font=font)
    write_png(out_path, sheet)
    return sheet.size


def _check_request(
    rows: Mapping[str, Path | str],
    *,
    ids: Sequence[str],
    prompts: Mapping[str, str],
    reference_label: str,
) -> None:
    if not ids:
        raise ValueError("a contact sheet needs at least one prompt id")
    if reference_label not in rows:
        raise ValueError(
            f"reference_label={reference_label!r} is no row; the rows are {', '.join(rows)}"
        )
    unknown = [name for name in ids if name not in prompts]
    if unknown:
        raise ValueError(f"no prompt for the ids {', '.join(unknown[:5])}")


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path}: no such image; the contact sheet shows every id in every row")
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _gain(differences: Sequence[_Difference]) -> int:
    pixels = np.concatenate([array.ravel() for array in differences])
    bright = float(np.percentile(pixels, _BRIGHT_PERCENTILE))
    if bright == 0:
        return LARGEST_GAIN
    octaves = min(max(math.log2(255 / bright), 0.0), math.log2(LARGEST_GAIN))
    return 1 << int(octaves)


def _difference(image: Image.Image, reference: Image.Image) -> _Difference:
    if image.size != reference.size:
        raise ValueError(f"images of {image.size} and {reference.size} pixels; sizes must be equal")
    return np.asarray(ImageChops.difference(image, reference), dtype=np.int64)


def _plan(
    lines: Mapping[str, Sequence[Image.Image]],
    *,
    reference: Sequence[Image.Image],
    cell_side: int,
    font: Font,
) -> _Layout:
    width, height = reference[0].size
    scale = _scale(max(width, height), cell_side=cell_side)
    widest = max(font.getlength(label) for label in lines)
    return _Layout(
        label_width=min(_LABEL_WIDTH_MAX, math.ceil(widest)),
        caption_height=_CAPTION_LINES * _LINE_HEIGHT,
        cell_width=max(1, round(width * scale)),
        cell_height=max(1, round(height * scale)),
        columns=len(reference),
    )


def _scale(side: int, *, cell_side: int) -> float:
    """A whole factor for small images, so that pixels stay square; large ones are reduced."""
    return max(1, round(cell_side / side)) if side <= cell_side else cell_side / side


def _draw_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    *,
    label: str,
    images: Sequence[Image.Image],
    row: int,
    layout: _Layout,
    font: Font,
) -> None:
    _, y = layout.origin(row, 0)
    most = max(1, layout.cell_height // _LINE_HEIGHT)
    text = _wrap(label, font=font, width=layout.label_width, lines=most)
    top = y + (layout.cell_height - len(text) * _LINE_HEIGHT) // 2
    for index, line in enumerate(text):
        draw.text((_GAP, top + index * _LINE_HEIGHT), line, fill=_BLACK, font=font)
    size = (layout.cell_width, layout.cell_height)
    for column, image in enumerate(images):
        filter_ = Image.Resampling.NEAREST if image.width <= size[0] else Image.Resampling.LANCZOS
        sheet.paste(image.resize(size, filter_), layout.origin(row, column))


def _write_bottom(
    draw: ImageDraw.ImageDraw, text: Sequence[str], *, x: int, bottom: int, font: Font
) -> None:
    for index, line in enumerate(text):
        y = bottom - (len(text) - index) * _LINE_HEIGHT
        draw.text((x, y), line, fill=_GREY, font=font)


def _wrap(text: str, *, font: Font, width: int, lines: int) -> list[str]:
    """Break at spaces, inside words that are too long; "..." where more than `lines` remain."""
    wrapped: list[str] = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}" if current else word
        if font.getlength(candidate) <= width:
            current = candidate
            continue
        if current:
            wrapped.append(current)
        while font.getlength(word) > width and len(word) > 1:
            cut = next(
                size
                for size in range(len(word) - 1, 0, -1)
                if size == 1 or font.getlength(word[:size]) <= width
            )
            wrapped.append(word[:cut])
            word = word[cut:]
        current = word
    if current:
        wrapped.append(current)
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        wrapped = [*wrapped[: lines - 1], f"{last}..."]
    return wrapped


def metric_chart(
    records: Sequence[Record],
    *,
    metric: str,
    out_path: Path | str,
    label: str = "",
    log_scale: bool = False,
) -> None:
    """A dot with its interval for each record that has the metric, as PNG.

    Infinite values cannot be drawn and are named in the title.
    """
    shown: list[tuple[str, Metric]] = []
    left_out: list[tuple[str, Metric]] = []
    for record in records:
        measured = record.metrics.get(metric)
        if measured is None or measured.value is None:
            continue
        name = f"{record.method_label} {record.bits_label}"
        (shown if math.isfinite(measured.value) else left_out).append((name, measured))
    if not shown:
        raise ValueError(f"no record has a finite {metric!r}; nothing can be drawn")
    figure = _dots(shown, label=label or metric, log_scale=log_scale)
    if left_out:
        names = ", ".join(name for name, _ in left_out)
        figure.axes[0].set_title(f"infinite, not drawn: {names}", fontsize=9)
    _save_figure(figure, Path(out_path))


def _dots(shown: Sequence[tuple[str, Metric]], *, label: str, log_scale: bool) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + _POINT_SIZE_INCHES * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for position, (_, metric) in enumerate(shown):
        assert metric.value is not None
        if metric.interval is not None:
            axes.plot(metric.interval, [position, position], color="tab:blue", linewidth=2)
        axes.plot([metric.value], [position], "o", color="tab:blue")
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    kinds = sorted({metric.interval_kind or "no interval" for _, metric in shown})
    axes.set_xlabel(f"{label} (bars: {', '.join(kinds)})")
    if log_scale:
        axes.set_xscale("log")
    axes.grid(axis="x", alpha=0.3)
    return figure


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One cell of a map of ratios: `value` above 0, or None and why."""

    row: str
    column: str
    value: float | None
    certain: bool = True  # told apart from 1
    note: str = ""


def ratio_map(tiles: Sequence[Tile], *, title: str, out_path: Path | str) -> None:
    """Rows against columns, each tile coloured by the logarithm of its ratio and printed, as PNG.

    Blue is below 1, red above; a ratio that is not told apart from 1 is grey; an empty tile was not
    measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(tile.row for tile in tiles))
    columns = list(dict.fromkeys(tile.column for tile in tiles))
    if not any(tile.value is not None for tile in tiles):
        raise ValueError("no ratio was measured; nothing can be drawn")
    size = (2.2 + 0.75 * len(columns), 1.6 + 0.28 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    grid = np.full((len(rows), len(columns)), np.nan)
    for tile in tiles:
        if tile.value is None:
            continue
        y, x = rows.index(tile.row), columns.index(tile.column)
        grid[y, x] = np.clip(math.log2(tile.value), -_MAP_OCTAVES, _MAP_OCTAVES)
        grid[y, x] *= tile.certain
        axes.text(
            x, y, _ratio_text(tile.value), ha="center", va="center", fontsize=8,
            color="black" if tile.certain else "grey",
        )  # fmt: skip
    image = axes.imshow(
        grid, cmap="coolwarm", vmin=-_MAP_OCTAVES, vmax=_MAP_OCTAVES, aspect="auto", alpha=0.75
    )
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=9)
    scale = figure.colorbar(image, ax=axes, ticks=range(-_MAP_OCTAVES, _MAP_OCTAVES + 1))
    scale.ax.set_yticklabels([f"{2.0**n:g}" for n in range(-_MAP_OCTAVES, _MAP_OCTAVES + 1)])
    _save_figure(figure, Path(out_path))


def _ratio_text(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def _save_figure(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
