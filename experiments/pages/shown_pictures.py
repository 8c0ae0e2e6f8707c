"""Which images a page shows, and how they are put into it: few, small, the worst prompts first."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from evaluation.report.columns import Column, format_number
from evaluation.report.page_data import Picture, Reference
from evaluation.report.tracking import brightened_difference
from evaluation.statistics import Array

if TYPE_CHECKING:
    from evaluation.report.rows import Scores
    from experiments.cell.cell import Cell
    from experiments.store.folders import Finished

_SIDE = 256  # pixels of the longer side; larger images are reduced
_QUALITY = 82
_LOSSLESS_BELOW = 96  # pixels: of so small an image every one counts, and it costs little


@dataclass(frozen=True, kw_only=True)
class RankedBy:
    """The metric that says which image is far from the reference."""

    column: Column
    higher_is_better: bool

    def badness(self, scores: Scores) -> Mapping[str, float]:
        """Prompt id -> the larger, the farther."""
        sign = -1.0 if self.higher_is_better else 1.0
        return {name: sign * value for name, value in scores[self.column.per_image].items()}


def worst_prompts(rows: Sequence[Mapping[str, float]], *, most: int) -> list[str]:
    """The prompts that are bad in most rows: by the mean of their ranks.

    Args:
        rows: of each row, prompt id -> badness; prompts that a row lacks are its best.
    """
    if not rows:
        return []
    ids = sorted(set.union(*(set(row) for row in rows)))
    total = np.zeros(len(ids))
    for row in rows:
        values: Array = np.array([row.get(name, -math.inf) for name in ids])
        total += np.argsort(np.argsort(values, kind="stable"), kind="stable")
    order = np.argsort(-total, kind="stable")[:most]
    return [ids[int(place)] for place in order]


def references_of(cell: Cell, ids: Sequence[str]) -> dict[str, Reference]:
    """The unquantized model's images of these prompts; empty where one is gone or damaged."""
    finished = cell.reference.find()
    if finished is None or not _whole(finished, ids):
        return {}
    prompts = {prompt.id: prompt.shown for prompt in cell.around.dataset.evaluation}
    return {
        name: Reference(prompt=prompts.get(name, name), image=small(finished.path / f"{name}.png"))
        for name in ids
    }


def pictures_of(
    cell: Cell, ids: Sequence[str], *, scores: Scores, columns: Sequence[Column], by: RankedBy
) -> list[Picture]:
    """A row's images of these prompts beside the reference's; empty where one is gone."""
    finished, reference = cell.images.find(), cell.reference.find()
    if finished is None or reference is None or not _whole(finished, ids):
        return []
    bad = by.badness(scores)
    return [
        _picture(name, finished.path, reference.path, scores=scores, columns=columns, bad=bad)
        for name in ids
    ]


def _picture(
    name: str,
    images: Path,
    references: Path,
    *,
    scores: Scores,
    columns: Sequence[Column],
    bad: Mapping[str, float],
) -> Picture:
    path = images / f"{name}.png"
    difference, gain = brightened_difference(path, references / f"{name}.png")
    told = {
        column.title: format_number(scores[column.per_image][name] * column.scale, decimals=3)
        for column in columns
        if name in scores.get(column.per_image, {})
    }
    rank = bad.get(name, -math.inf)
    return Picture(
        prompt_id=name,
        image=small(path),
        difference=_uri(difference, lossless=False),
        gain=gain,
        scores=told,
        rank=rank if math.isfinite(rank) else -1e9,  # identical to the reference: the best
    )


def _whole(finished: Finished, ids: Sequence[str]) -> bool:
    return not any(finished.differs(f"{name}.png") for name in ids)


def small(path: Path) -> str:
    """A data URI, reduced where it is large."""
    with Image.open(path) as picture:
        image = picture.convert("RGB")
    return _uri(image, lossless=max(image.size) < _LOSSLESS_BELOW)


def _uri(image: Image.Image, *, lossless: bool) -> str:
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=lossless, quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
