"""Lists of prompts that somebody else made: JSON lines, CSV, TSV, YAML or plain text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.outside_files import json_lines, read_text

FORMATS = (".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".yml")
_PROMPT_COLUMNS = ("prompt", "prompts", "caption", "text")
_DIGITS = 5  # of the number that is the id where a list has none


@dataclass(frozen=True, kw_only=True)
class ListedPrompt:
    """A prompt as a list has it; `image` names its picture, where the list says it."""

    id: str
    text: str
    image: str | None = None


def read_prompt_list(path: Path) -> dict[str, ListedPrompt]:
    """The prompts of a list by id, in its order; where it has no ids, they count from 00000.

    A text has one a line; YAML is one mapping from ids to texts. Of an object or a table's row the
    prompt is its `prompt`, `prompts`, `caption` or `text`, in capitals or not; beside it `id` and
    `image` may stand. A TSV has no quotes, a CSV may.

    Raises:
        ValueError: it is missing, of another format, or has a row that is none; with its line.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: prompts are read from {', '.join(FORMATS)}")
    if kind == ".txt":
        lines = (line.strip() for line in read_text(path).split("\n"))
        listed = [_numbered(number, line) for number, line in enumerate(filter(None, lines))]
        return {prompt.id: prompt for prompt in listed}
    if kind in (".yaml", ".yml"):
        return {name: ListedPrompt(id=name, text=text) for name, text in yaml_texts(path).items()}
    rows = json_lines(path) if kind == ".jsonl" else _table(path, tabs=kind == ".tsv")
    found: dict[str, ListedPrompt] = {}
    for number, (line, row) in enumerate(rows):
        prompt = _from_row(number, row, where=f"{path}:{line}")
        if prompt.id in found:
            raise ValueError(f"{path}:{line}: id {prompt.id!r} is there already; ids are unique")
        found[prompt.id] = prompt
    return found


def yaml_texts(path: Path) -> dict[str, str]:
    """A YAML file that maps ids to texts, in its order.

    Raises:
        ValueError: it is none, with the line where that is known.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(read_text(path), Loader=loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        said = getattr(error, "problem", None) or "nested too deeply"
        raise ValueError(f"{at}: cannot be read as YAML ({said})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: is no mapping from ids to prompts")
    for name, text in content.items():
        if not isinstance(text, str):
            raise ValueError(f"{path}: {str(name)[:40]!r}: its prompt is no text")
    return {str(name): text for name, text in content.items()}


def _table(path: Path, *, tabs: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and content of each row, by the names that the first row gives."""
    text = io.StringIO(read_text(path), newline="")
    rows = (
        csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        if tabs
        else csv.DictReader(text)
    )
    try:
        for row in rows:
            yield rows.line_num, {(key or "").strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}:{rows.line_num}: cannot be read as a table ({error})") from error


def _from_row(number: int, row: Mapping[str, Any], *, where: str) -> ListedPrompt:
    by_name = {key.lower(): value for key, value in row.items()}
    column = next((name for name in _PROMPT_COLUMNS if name in by_name), None)
    if column is None:
        raise ValueError(f"{where}: has no prompt; name one of its fields {_PROMPT_COLUMNS[0]!r}")
    text, name, image = by_name[column], by_name.get("id"), by_name.get("image")
    for key, value in ((column, text), ("id", name), ("image", image)):
        if not isinstance(value, str) and (value is not None or key == column):
            raise ValueError(f"{where}: {key!r} is {str(value)[:40]!r}, not a text")
    listed = _numbered(number, text)
    return ListedPrompt(id=name or listed.id, text=text, image=image or None)


def _numbered(number: int, text: str) -> ListedPrompt:
    return ListedPrompt(id=f"{number:0{_DIGITS}d}", text=text)
