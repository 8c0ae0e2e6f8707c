"""How a command line becomes the config of a cell.

Hydra composes the yaml files, then every group goes through its dataclass once more, which checks
types and closes the hole that `+key=value` leaves in composed configs.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.checks import boolean, check_values, integer, positive, text
from experiments.config.limits import check_plain
from experiments.config.overrides import key_of
from experiments.config.parts import REQUIRED, build_part, in_one_line
from experiments.config.places import GROUPS, config_dirs, read_yaml, stands_alone
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.store.paths import CONF

_ENVIRONMENT = "oc.env:"  # omegaconf's name of what reads environment variables


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The composed, unchecked config of one cell (or of an experiment, with its `sweep`)."""
    return copy.deepcopy(_composed(tuple(overrides), config_dirs()))


def build(node: DictConfig, *, method_name: str) -> RunConfig:
    """Checks a composed config and builds its dataclasses.

    Raises:
        UserError: a key that does not exist, a value of the wrong type or out of range.
    """
    parts = {group: build_part(group, _plain(node[group])) for group in GROUPS}
    secret = tuple(key for group in GROUPS for key in _from_environment(node[group], group))
    return _assembled(_top_level(node), parts, method_name=method_name, secret=secret)


def build_cell(overrides: Sequence[str], *, method_name: str) -> RunConfig:
    """The checked config of one cell, as `build(compose_config(overrides))` has it.

    No group reads another, so each group's choice is composed and built once, whatever it is
    combined with: a sweep of a thousand cells costs as many compositions as it has settings, and
    none for a choice whose file is all that decides it.

    Raises:
        UserError: a key that does not exist, a value of the wrong type or out of range.
    """
    by_group: dict[str, list[str]] = {}
    for item in overrides:
        head = re.split(r"[.@]", key_of(item), maxsplit=1)[0]
        by_group.setdefault(head if head in GROUPS else "", []).append(item)
    shared, places = tuple(by_group.pop("", [])), config_dirs()
    built = {
        group: _built(shared, tuple(by_group.get(group, ())), group, places) for group in GROUPS
    }
    parts = {group: copy.deepcopy(part) for group, (part, _) in built.items()}
    secret = tuple(key for _, keys in built.values() for key in keys)
    values = _shared_values(shared, places)
    return _assembled(values, parts, method_name=method_name, secret=secret)


@functools.cache
def _built(
    shared: tuple[str, ...], own: tuple[str, ...], group: str, places: tuple[Path, ...]
) -> tuple[Any, tuple[str, ...]]:
    """A group's dataclass and its values of the environment; `places` is for the cache's sake."""
    if len(own) == 1 and (option := _decided_by_its_file(own[0], group, shared)):
        return build_part(group, read_yaml(group, option)), ()
    node = _composed((*shared, *own), places)[group]
    return build_part(group, _plain(node)), _from_environment(node, group)


def _decided_by_its_file(override: str, group: str, shared: Sequence[str]) -> str:
    """The option that an override chooses if nothing but its file decides the group, else ''."""
    key, _, option = override.partition("=")
    if key != group or not stands_alone(group, option):
        return ""
    for item in shared:
        if key_of(item) == "experiment":
            content = read_yaml("experiment", item.partition("=")[2])
            listed = content.get("defaults", [])
            replaced = all(
                isinstance(entry, dict) and all(name.startswith("override ") for name in entry)
                for entry in listed
            )
            if group in content or not replaced:
                return ""
        elif "@" in key_of(item) or key_of(item).startswith("hydra"):
            return ""
    return option


@functools.cache
def _shared_values(shared: tuple[str, ...], places: tuple[Path, ...]) -> dict[str, Any]:
    return _top_level(_composed(shared, places))


@functools.cache
def _composed(overrides: tuple[str, ...], places: tuple[Path, ...]) -> DictConfig:
    listed = ",".join(f'"file://{folder}"' for folder in places)
    beside = [f"hydra.searchpath=[{listed}]"] if places else []
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            return compose(config_name="config", overrides=[*beside, *overrides])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(in_one_line(error)) from error


def _plain(node: DictConfig) -> dict[str, Any]:
    """A composed group as plain values.

    Raises:
        UserError: it reads a key that is not there.
    """
    try:
        content = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    except RecursionError as error:
        raise UserError("a value refers to itself with ${...}; write the value") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(in_one_line(error)) from error
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _from_environment(node: DictConfig, key: str) -> tuple[str, ...]:
    """Dotted keys of the values that are read from environment variables."""

    def found(value: Any, key: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from found(item, f"{key}.{name}")
        elif isinstance(value, list):
            yield from (key for item in value for _ in found(item, key))
        elif isinstance(value, str) and _ENVIRONMENT in value:
            yield key

    return tuple(dict.fromkeys(found(OmegaConf.to_container(node, resolve=False), key)))


def _top_level(node: DictConfig) -> dict[str, Any]:
    """The values that belong to no group.

    Raises:
        UserError: one is not given, or no value that a setting can have.
    """
    values = {k: v for k, v in _plain(node).items() if k not in (*GROUPS, "sweep")}
    for key, value in values.items():
        if value == REQUIRED:
            raise UserError(f"{key} is not given; give {key}=...")
    check_plain(values)
    return values


def _assembled(
    values: Mapping[str, Any],
    parts: Mapping[str, Any],
    *,
    method_name: str,
    secret: tuple[str, ...],
) -> RunConfig:
    gigabytes, threads = values["statistics_gigabytes"], values["num_threads"]
    config = RunConfig(
        **parts,
        method_name=method_name,
        seed=integer(values, "seed"),
        device=text(values, "device"),
        execution=text(values, "execution"),
        activation_code=text(values, "activation_code"),
        fuse_activations=boolean(values, "fuse_activations"),
        num_threads=None if threads is None else integer(values, "num_threads"),
        latents=text(values, "latents"),
        image=text(values, "image"),
        statistics_gigabytes=(
            None if gigabytes is None else positive(values, "statistics_gigabytes")
        ),
        replay_gigabytes=positive(values, "replay_gigabytes"),
        out=text(values, "out"),
        group=text(values, "group"),
        from_environment=secret,
    )
    check_values(config)
    return _settled(config)


def _settled(config: RunConfig) -> RunConfig:
    """What a job decides on its node is decided here: results depend on it, so all must agree."""
    jobs = config.cluster.jobs
    if jobs is None:
        return config
    device = config.device
    if device == "auto":
        device = "cuda" if jobs.gpus else "cpu"
    return replace(config, device=device, num_threads=config.num_threads or jobs.cpus)
