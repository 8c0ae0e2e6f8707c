"""The prompts' texts of a folder of images: JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.outside_files import json_lines

_WAYS = (
    'a JSON object of names and texts, lines of {"id": ..., "prompt": ...}, or a CSV file with the '
    "columns id and prompt"
)


def read_texts(path: Path) -> dict[str, str]:
    """Name -> text.

    Raises:
        ValueError: no such file, or none of the ways to write one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of prompts; give {_WAYS}")
    try:
        rows = _read(path)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}; give {_WAYS}") from error
    texts = {}
    for name, text in rows:
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(f"{path}: {name!r} has the text {text!r}; give {_WAYS}")
        texts[name] = text
    return texts


def _read(path: Path) -> list[tuple[Any, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [(row.get("id"), row.get("prompt")) for row in csv.DictReader(file)]
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
        return [(name, _text(value)) for name, value in content.items()]
    return [(row.get("id"), row.get("prompt")) for _, row in json_lines(path)]


def _text(value: Any) -> Any:
    return value.get("prompt") if isinstance(value, Mapping) else value
