"""`per_image.csv`: one row a prompt, so that any two methods can be compared pair by pair later."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.records import write_text_atomically

Scores = Mapping[str, Mapping[str, float]]  # column -> prompt id -> value


def write_per_image(path: Path | str, *, ids: Sequence[str], scores: Scores) -> None:
    """Write ids and scores in full precision; a prompt without a value has an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("id", *scores))
    for name in ids:
        values = (column.get(name) for column in scores.values())
        writer.writerow((name, *("" if value is None else repr(float(value)) for value in values)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, buffer.getvalue())


def read_per_image(path: Path | str) -> dict[str, dict[str, float]]:
    """Column -> prompt id -> value, whatever the columns are; those without a value are left out.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        if head[:1] != ["id"] or len(set(head)) != len(head):
            raise ValueError("the first line must be id and the names of different columns")
        if len({row[0] for row in rows if row}) != len(rows):
            raise ValueError("a line is empty, or an id stands in two")
        scores: dict[str, dict[str, float]] = {column: {} for column in head[1:]}
        for row in rows:
            for column, text in zip(head[1:], row[1:], strict=True):
                if text:
                    scores[column][row[0]] = float(text)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: damaged ({error}); measure its images again") from error
    return {column: values for column, values in scores.items() if values}
