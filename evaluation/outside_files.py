"""Files that somebody else wrote: read whole and of the right kind, or refused with their name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 256 * 2**20  # of a text; a file of prompts has some hundred bytes a line


@dataclass(frozen=True, kw_only=True)
class OutsideFile:
    """A file that a metric or a data set reads and nobody may pass on: where to get it and put it.

    What is not known of it is None.
    """

    path: Path  # where it is looked for
    needed_by: str
    origin: str | None  # an address or a name
    size: int | None
    sha256: str | None  # as far as it is known: its beginning is enough

    def is_there(self) -> bool:
        return self.path.is_file() and self.size in (None, self.path.stat().st_size)

    def describe(self) -> str:
        """One line."""
        known = [f"{self.size} bytes"] if self.size is not None else []
        known += [f"sha256 {self.sha256}"] if self.sha256 is not None else []
        said = f" ({', '.join(known)})" if known else ""
        if self.is_there():
            return f"{self.needed_by}: {self.path}: there{said}"
        origin = f"; get it from {self.origin}" if self.origin is not None else ""
        return f"{self.needed_by}: {self.path}: missing{said}{origin} and put it there"

    def to_dict(self) -> dict[str, Any]:
        """JSON's types."""
        return {**asdict(self), "path": str(self.path), "there": self.is_there()}


def read_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """A text in UTF-8.

    Raises:
        ValueError: it is missing, no file, too large, or in another encoding.
    """
    try:
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        size = path.stat().st_size
        if size > most_bytes:
            raise ValueError(
                f"{path} has {size / 1e6:.0f} MB; such a file has {most_bytes / 1e6:.0f} MB at most"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_json_object(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """A file whose JSON is one object.

    Raises:
        ValueError: as `read_text`; it is no JSON, too deep, or something else than an object.
    """
    text = read_text(path, most_bytes=most_bytes)
    return _object(parsed(text, where=str(path)), where=str(path))


def json_lines(path: Path, *, most_bytes: int = MOST_BYTES) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of every line that is not empty; only a line feed ends one.

    Raises:
        ValueError: as `read_json_object`, with the line.
    """
    for number, line in enumerate(read_text(path, most_bytes=most_bytes).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield number, _object(parsed(line, where=where), where=where)


def parsed(text: str, *, where: str) -> Any:
    """JSON of somebody else's.

    Raises:
        ValueError: it is none, or too deep or long to be read.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{where}:{error.lineno}" if error.lineno > 1 else where
        raise ValueError(f"{at}: cannot be read as JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: cannot be read as JSON (nested too deeply)") from error
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{where}: cannot be read as JSON (a number is too long)") from error


def text_fault(text: str) -> str | None:
    """What a text holds that no name or prompt can have: it has no UTF-8, or ends C strings."""
    if "\0" in text:
        return "a NUL character"
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return "half of a surrogate pair"
    return None


def _object(value: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is {_kind(value)}, not an object {{...}}")
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "a truth value", int: "a number"}
    return "null" if value is None else kinds.get(type(value), "a number")
