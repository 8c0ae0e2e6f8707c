"""What a command line asks for: its cells, composed and checked before anything runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from experiments.config.compose import build_cell
from experiments.config.limits import MOST_CELLS
from experiments.config.overrides import (
    check_fields,
    check_override,
    key_of,
    parse_overrides,
)
from experiments.config.places import GROUPS, find_yaml, read_yaml, shown
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.store.digests import digest
from experiments.store.paths import CONF

# whose keys are not known here
_OPEN = ("model.call.", "model.parts.", "model.scheduler.", "metrics.settings.")
_SWEPT = ("model", "method", "bits", "dataset")  # the groups that an experiment's blocks may name
# of how a cell is sampled and multiplied: a block may name them, as a protocol does
_REPLAYED = ("latents", "image", "execution", "activation_code")
_WHERE = ("out", "cluster", "logger", "group")  # decide nothing of what is measured


@dataclass(frozen=True)
class Request:
    """What was asked for: the cells in their order, and the experiment's name if it has one."""

    name: str
    cells: tuple[RunConfig, ...]


def read_request(arguments: Sequence[str], *, multirun: bool) -> Request:
    """Every cell of a command line, composed and checked before anything runs.

    Raises:
        UserError: an unknown key, option or value, or a sweep without `-m`.
    """
    overrides = parse_overrides([_opened(item) for item in _folder_by_path(list(arguments))])
    for override in overrides:
        check_override(override)
    experiment = _experiment(overrides)
    swept = [o for o in overrides if o.is_sweep_override()]
    if swept and not multirun and experiment is None:
        raise UserError(f"{swept[0].input_line!r} names several values; add -m to run them all")
    defaults = _defaults(experiment)
    lines = _cell_lines(overrides, experiment)
    cells = []
    for line in {tuple(sorted(line)): line for line in lines}.values():
        chosen = defaults | {key_of(item): item.partition("=")[2] for item in line}
        for item in line:
            key = key_of(item)
            check_fields(key, option=chosen.get(key.partition(".")[0], ""))
        cell = build_cell(line, method_name=chosen["method"])
        if cell.bits.name != chosen["bits"]:
            raise UserError(
                f"bits.name={cell.bits.name} with bits={chosen['bits']}; a row is called what its "
                "file is: leave bits.name as it is, or write a file of your own (--config-dir)"
            )
        cells.append(cell)
    return Request(name=experiment or _name_of(lines), cells=tuple(cells))


def _name_of(lines: Sequence[Sequence[str]]) -> str:
    """What a sweep without a name is reported under: two different ones do not overwrite it."""
    kept = [
        sorted(item for item in line if key_of(item).partition(".")[0] not in _WHERE)
        for line in lines
    ]
    return f"sweep_{digest(kept)[:8]}"


def read_recorded(words: Sequence[str]) -> Request:
    """The request whose records `table` and `compare` read: an experiment, or a sweep's own words.

    Raises:
        UserError: as `read_request`.
    """
    first, *rest = words
    named = first if "=" in first else f"+experiment={first}"
    return read_request([named, *rest], multirun=True)


def _folder_by_path(arguments: list[str]) -> list[str]:
    """`model.path=X` without `model=` means any folder, not a tiny model's settings."""
    keys = {key_of(argument) for argument in arguments}
    own_folder = "model.path" in keys and not keys & {"model", "experiment"}
    if "model.path" in keys and "model.name" not in keys:
        arguments = [*arguments, "model.name=''"]  # its last part: it is another model
    return ["model=folder", *arguments] if own_folder else arguments


def _opened(argument: str) -> str:
    """What a call, a scheduler and a metric take, only they know: their keys need no `+`."""
    return f"++{argument}" if argument.startswith(_OPEN) else argument


def _experiment(overrides: Sequence[Override]) -> str | None:
    for override in overrides:
        if override.key_or_group == "experiment":
            return str(override.value())
    return None


def _defaults(experiment: str | None) -> dict[str, str]:
    """The option of each group that no override chooses: config.yaml's, else the experiment's."""
    base = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    assert isinstance(base, dict)
    changes = {} if experiment is None else read_yaml("experiment", experiment)
    return {
        str(group).removeprefix("override ").lstrip("/"): str(option)
        for entry in [*base["defaults"], *changes.get("defaults", [])]
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def _cell_lines(overrides: Sequence[Override], experiment: str | None) -> list[list[str]]:
    """The overrides of each cell: its own choice on every axis, then what all cells share."""
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    fixed = [line for line in fixed if key_of(line) not in _SWEPT]
    several = {o.key_or_group: _values(o) for o in overrides if o.is_sweep_override()}
    single = {
        o.key_or_group: [str(o.value())]
        for o in overrides
        if o.key_or_group in _SWEPT and not o.is_sweep_override()
    }
    lines: list[list[str]] = []
    for block in [{}] if experiment is None else _blocks(experiment):
        axes = {**block, **single, **several}  # the command line replaces what the block sweeps
        count = len(lines) + math.prod(len(values) for values in axes.values())
        if count > MOST_CELLS:
            raise UserError(f"{count} cells; a sweep has {MOST_CELLS} at most: split it")
        for combination in itertools.product(*axes.values()):
            chosen = [f"{key}={value}" for key, value in zip(axes, combination, strict=True)]
            lines.append([*chosen, *fixed])
    return lines


def _values(override: Override) -> list[str]:
    return [str(value) for value in override.sweep_string_iterator()]


def _blocks(experiment: str) -> list[dict[str, list[str]]]:
    """An experiment's `sweep`: blocks, each a product of the groups and settings that it names."""
    path = find_yaml("experiment", experiment)
    assert path is not None  # its name was checked
    blocks = read_yaml("experiment", experiment).get("sweep") or [{}]
    for block in blocks:
        for key in block:
            if key.partition(".")[0] not in (*GROUPS, *_REPLAYED):
                raise UserError(
                    f"{shown(path)}: sweep names {key!r}; use {', '.join((*_SWEPT, *_REPLAYED))}, "
                    "or a setting of one such as method.alpha"
                )
    return [
        {key: [_written(v) for v in values] for key, values in block.items()} for block in blocks
    ]


def _written(value: Any) -> str:
    """A YAML value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)
