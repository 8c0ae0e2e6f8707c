"""The `key=value` of a command line: read, and refused with a hint where it names nothing."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import fields

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from evaluation.datasets.interface import Dataset
from experiments.config.limits import MOST_CELLS
from experiments.config.places import GROUPS, options, read_yaml
from experiments.config.run_config import (
    ClusterConfig,
    LoggerConfig,
    MetricsConfig,
    ModelConfig,
)
from experiments.errors import UserError
from segquant.core.schemes import Bits

TARGET = "_target_"
_SETTINGS = {
    "model": [item.name for item in fields(ModelConfig)],
    "dataset": [name for name in Dataset.__annotations__ if not name.startswith("_")],
    "metrics": [item.name for item in fields(MetricsConfig)],
    "cluster": [item.name for item in fields(ClusterConfig)],
    "logger": [item.name for item in fields(LoggerConfig)],
    "bits": [item.name for item in fields(Bits)],
}
# Settings that hold entries of any name, of which one can be taken away.
_OPEN = (
    "model.call",
    "model.keep",
    "model.parts",
    "model.scheduler",
    "metrics.settings",
    "cluster.stages",
    "cluster.jobs.options",
    "cluster.jobs.environment",
)
# Those that can go as a whole: a model of which nothing is kept is one too.
_MAY_BE_EMPTY = ("model.keep",)
_TOP_LEVEL = (
    "seed",
    "device",
    "execution",
    "activation_code",
    "fuse_activations",
    "num_threads",
    "latents",
    "image",
    "statistics_gigabytes",
    "replay_gigabytes",
    "out",
    "group",
    "sweep",
)


def parse_overrides(arguments: list[str]) -> list[Override]:
    """Hydra's grammar, with an error that says what was wrong with which argument."""
    parser = OverridesParser.create()
    parsed = []
    for argument in arguments:
        try:
            parsed.append(parser.parse_override(argument))
        except HydraException as error:
            raise UserError(f"cannot read {argument!r}; {_how_to_write(argument)}") from error
    return parsed


def _check_removal(key: str) -> None:
    """Only what a file lists beneath a setting can be taken away; a setting itself is needed."""
    beneath = any(key.startswith(f"{open_one}.") for open_one in _OPEN)
    if not beneath and key not in _MAY_BE_EMPTY:
        raise UserError(
            f"'~{key}' takes away a setting that every run needs; give it a value with {key}=..., "
            f"or take away one of {', '.join(f'{open_one}.NAME' for open_one in _OPEN)}"
        )


def _check_sweep(override: Override) -> None:
    """A choice of values that can be counted, and not too many."""
    if not (override.is_choice_sweep() or override.is_range_sweep()) or isinstance(
        override.value(), Glob
    ):
        raise UserError(
            f"{override.input_line!r}: glob and interval are not read here; write the values, as "
            f"in {override.key_or_group}=a,b"
        )
    count = sum(1 for _ in itertools.islice(override.sweep_iterator(), MOST_CELLS + 1))
    if count > MOST_CELLS:
        raise UserError(
            f"{override.input_line!r} has more than {MOST_CELLS} values; each is a cell at least"
        )


def key_of(override: str) -> str:
    """The key of an override as it was written: `model.path` of `++model.path=/x`."""
    return override.lstrip("+~").partition("=")[0]


def check_override(override: Override) -> None:
    """Names the nearest valid key, or the group's options, when an override names nothing."""
    key = override.key_or_group
    if override.package is not None:
        raise UserError(f"{override.input_line!r}: '@' has no meaning here; write {key}=...")
    if override.is_delete():
        _check_removal(key)
    if override.is_sweep_override():
        _check_sweep(override)
    if key in GROUPS or key == "experiment":
        several = override.is_sweep_override()
        chosen = list(override.sweep_string_iterator()) if several else [override.value()]
        for value in chosen:
            _check_option(key, f"{value!s}")
        return
    head = key.split(".")[0]
    if key in _TOP_LEVEL or (head in GROUPS and "." in key):
        return
    within = [f"{group}.{key}" for group, names in _SETTINGS.items() if key in names]
    known = [*GROUPS, "experiment", *_TOP_LEVEL]
    near = within or difflib.get_close_matches(head, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    allowed = ", ".join([*GROUPS, "+experiment", *(k for k in _TOP_LEVEL if k != "sweep")])
    raise UserError(f"unknown key {key!r}; {hint}keys are {allowed}, and group.field=value")


def check_fields(key: str, *, option: str) -> None:
    """Refuses `group.field` when the group's chosen yaml has no such field."""
    group, _, rest = key.partition(".")
    if group not in GROUPS or not rest:
        return
    field = rest.split(".")[0]
    allowed = [name for name in read_yaml(group, option) if name != TARGET]
    if field not in allowed:
        raise unknown_field(f"{group}.{field}", allowed)


def unknown_field(key: str, allowed: list[str]) -> UserError:
    where, _, name = key.partition(".")
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {where}.{near[0]}? " if near else ""
    return UserError(f"unknown key {key}; {hint}fields are {', '.join(allowed)}")


def _check_option(group: str, value: str) -> None:
    allowed = options(group)
    if value in allowed:
        return
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {group} {value!r}; {hint}choose one of {', '.join(allowed)}")


def _how_to_write(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals:
        return f"write key=value, and a value with signs in quotes of its own: '{key}=\"{value}\"'"
    if argument in options("experiment"):
        return f"did you mean +experiment={argument}?"
    return "write key=value"
