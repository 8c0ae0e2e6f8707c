"""Configs as JSON has them, for keys and records."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any


def plain(value: Any) -> Any:
    """JSON's types only: enums by member name, tuples as lists, paths as text."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def method_fields(method: Any) -> dict[str, Any]:
    """A method's, or a data set's, class and settings."""
    kind = type(method)
    fields = plain(asdict(method))
    assert isinstance(fields, dict)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **fields}
