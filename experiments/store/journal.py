"""Lines of JSON that several calls add to; one that was cut short or damaged is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def add_line(path: Path, content: dict[str, Any]) -> None:
    """Begins a line of its own, whatever became of the one before."""
    with path.open("ab") as stream:
        stream.write(b"\n" + json.dumps(content).encode() + b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects that can be read; none if there is no such file."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    contents = (_read(line) for line in lines if line)
    return [content for content in contents if isinstance(content, dict)]


def _read(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
