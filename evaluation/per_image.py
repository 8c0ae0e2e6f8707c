"""`per_image.csv`: one row a prompt, so that any two methods can be compared pair by pair later."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.records import write_text_atomically
from evaluation.statistics import RESAMPLES, Difference, paired_difference

COLUMNS = ("psnr", "ssim", "lpips", "clip", "clip_reference")


def write_per_image(
    path: Path | str, *, ids: Sequence[str], columns: Mapping[str, Sequence[float]]
) -> None:
    """Write id and `COLUMNS` in full precision; a column that was not measured stays empty."""
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"{path}: unknown columns {unknown}; allowed are {', '.join(COLUMNS)}")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("id", *COLUMNS))
    for index, name in enumerate(ids):
        values = (repr(float(columns[c][index])) if c in columns else "" for c in COLUMNS)
        writer.writerow((name, *values))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, buffer.getvalue())


def read_per_image(path: Path | str) -> tuple[list[str], dict[str, list[float]]]:
    """The ids and the columns that were measured."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or tuple(rows[0]) != ("id", *COLUMNS):
        raise ValueError(f"{path}: the first line must be id,{','.join(COLUMNS)}")
    ids = [row[0] for row in rows[1:]]
    columns = {}
    for index, name in enumerate(COLUMNS, start=1):
        texts = [row[index] for row in rows[1:]]
        if all(texts) and texts:
            columns[name] = [float(text) for text in texts]
    return ids, columns


def compare_per_image(
    path_a: Path | str,
    path_b: Path | str,
    *,
    column: str,
    seed: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """Mean of a - b over the prompts, which must be the same in both files."""
    (ids_a, a), (ids_b, b) = read_per_image(path_a), read_per_image(path_b)
    for path, columns in ((path_a, a), (path_b, b)):
        if column not in columns:
            raise ValueError(f"{path}: no column {column!r}; it has {', '.join(columns) or 'none'}")
    if sorted(ids_a) != sorted(ids_b):
        differing = sorted(set(ids_a) ^ set(ids_b))
        raise ValueError(
            f"{path_a} and {path_b} hold different prompts: {len(differing)} are in one "
            f"only, such as {differing[:3]}; evaluate both on the same prompts"
        )
    by_id = dict(zip(ids_b, b[column], strict=True))
    return paired_difference(
        a[column], [by_id[name] for name in ids_a], seed=seed, resamples=resamples
    )
