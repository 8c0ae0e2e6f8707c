"""The words of `segbench run` that make one cell again, whatever sweep it was of.

They are checked: what they are read as is the very config. Where words cannot say it (a key with a
dot in it), there are none.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.config.parts import build_part
from experiments.config.places import config_dirs, options, read_yaml
from experiments.config.plain import plain
from experiments.config.request import read_request
from experiments.config.run_config import RunConfig
from experiments.errors import UserError

_DECIDE_NOTHING = ("cluster", "logger", "group", "from_environment")
_OWN = ("model", "method", "bits", "dataset", "metrics", "method_name", *_DECIDE_NOTHING)
_FOLDER = "folder"  # the option of a model that conf/ does not name
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*")
_RESERVED = ("null", "true", "false", "nan", "inf", "on", "off", "yes", "no")
_OPEN = ("call", "parts", "scheduler", "keep", "settings")


def run_command(config: RunConfig) -> str:
    """`segbench run ...` for a shell; empty where no words make just this cell."""
    words = cell_words(config)
    return "" if words is None else shell_line("run", words)


def shell_line(verb: str, words: Sequence[str]) -> str:
    own = [part for folder in config_dirs() for part in ("--config-dir", str(folder))]
    return shlex.join(["segbench", verb, *words, *own])


def cell_words(config: RunConfig) -> list[str] | None:
    """What `segbench run` takes to make this cell and no other, or None."""
    try:
        words = list(_words(config))
        cells = read_request(words, multirun=False).cells
    except (UserError, ValueError):
        return None
    alike = len(cells) == 1 and repr(_deciding(cells[0])) == repr(_deciding(config))
    return words if alike else None


def _deciding(config: RunConfig) -> dict[str, Any]:
    names = [item.name for item in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names if name not in _DECIDE_NOTHING}


def _words(config: RunConfig) -> Iterator[str]:
    chosen = {
        "model": [config.model.name if config.model.name in options("model") else _FOLDER],
        "method": [config.method_name],
        "bits": [config.bits.name],
        "dataset": [config.dataset.name],
        "metrics": options("metrics"),
    }
    top = _base()
    for group, names in chosen.items():
        values = plain(asdict(getattr(config, group)))
        option, changes = min(
            ((name, list(_changes(group, name, values))) for name in names),
            key=lambda found: len(found[1]),
        )
        if group != "metrics" or option != _default_option("metrics"):
            yield f"{group}={option}"
        yield from changes
    for item in dataclasses.fields(config):
        if item.name not in _OWN and getattr(config, item.name) != top.get(item.name):
            yield f"{item.name}={written(plain(getattr(config, item.name)))}"


def _base() -> Mapping[str, Any]:
    """conf/config.yaml's own values."""
    return read_yaml("", "config")


def _default_option(group: str) -> str:
    for entry in _base()["defaults"]:
        if isinstance(entry, dict) and group in entry:
            return str(entry[group])
    return ""


def _changes(group: str, option: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Settings unlike the option's file."""
    own = _own_values(group, option, config_dirs())
    for key, value in values.items():
        default = own.get(key)
        named_by_option = key == "name" and (group != "model" or option != _FOLDER)
        if value == default or named_by_option:
            continue
        if isinstance(value, dict) and key in _OPEN:
            yield from _entries(f"{group}.{key}", value, default or {})
        elif isinstance(value, dict) and isinstance(default, dict) and set(value) == set(default):
            yield from _nested(f"{group}.{key}", value, default)
        else:
            yield f"{group}.{key}={written(value)}"


@functools.cache
def _own_values(group: str, option: str, places: tuple[Path, ...]) -> Mapping[str, Any]:
    """What the option's file makes; `places` is for the cache's sake."""
    content = read_yaml(group, option)
    try:
        values: Mapping[str, Any] = plain(asdict(build_part(group, content)))
    except UserError:  # a value that a file leaves to the command line
        return content
    return values


def _nested(key: str, values: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if value != own[name]:
            yield f"{key}.{name}={written(value)}"


def _entries(key: str, values: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name not in own or own[name] != value:
            yield f"++{key}.{name}={written(value)}"
    for name in own:
        if name not in values:
            yield f"~{key}.{name}"


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
            return value
        # backslashes are themselves, but before a quotation mark they are doubled
        quoted = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + (m[2] and "\\'"), value)
        return f"'{quoted}'"
    if isinstance(value, list):
        return f"[{','.join(written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    return json.dumps(value)
