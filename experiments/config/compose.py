"""How a command line becomes the config of a cell.

Hydra composes the yaml files, then `build` pushes the result through the dataclasses once more,
which checks types and closes the hole that `+key=value` leaves in composed configs.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.run_config import (
    ClusterConfig,
    DatasetConfig,
    LoggerConfig,
    MetricsConfig,
    ModelConfig,
    RunConfig,
)
from experiments.errors import UserError
from experiments.sampling.execution import ACTIVATION_CODES, EXECUTIONS
from experiments.store.paths import CONF
from segquant.core.method_interface import Method, StatisticsNeeds
from segquant.core.schemes import Bits

GROUPS = ("model", "method", "bits", "dataset", "metrics", "cluster", "logger")
_REQUIRED = "???"
_METHOD = tuple(name for name in vars(Method) if not name.startswith("_"))

_SCHEMAS: dict[str, type] = {
    "model": ModelConfig,
    "dataset": DatasetConfig,
    "metrics": MetricsConfig,
    "cluster": ClusterConfig,
    "logger": LoggerConfig,
    "bits": Bits,
}
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


def options(group: str) -> list[str]:
    """The names that `group=` takes, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


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


def key_of(override: str) -> str:
    """The key of an override as it was written: `model.path` of `++model.path=/x`."""
    return override.lstrip("+~").partition("=")[0]


def _how_to_write(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals:
        return f"write key=value, and a value with signs in quotes of its own: '{key}=\"{value}\"'"
    if argument in options("experiment"):
        return f"did you mean +experiment={argument}?"
    return "write key=value"


def check_override(override: Override) -> None:
    """Names the nearest valid key, or the group's options, when an override names nothing."""
    key = override.key_or_group
    if key in GROUPS or key == "experiment":
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        chosen = list(values) if values is not None else [override.value()]
        for value in chosen:
            _check_option(key, f"{value!s}")
        return
    head = key.split(".")[0]
    if key in _TOP_LEVEL or (head in (*GROUPS, "hydra") and "." in key) or "@" in key:
        return
    within = [f"{g}.{key}" for g, kind in _SCHEMAS.items() for f in fields(kind) if f.name == key]
    known = [*GROUPS, "experiment", *_TOP_LEVEL]
    near = within or difflib.get_close_matches(head, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    allowed = ", ".join([*GROUPS, "+experiment", *(k for k in _TOP_LEVEL if k != "sweep")])
    raise UserError(f"unknown key {key!r}; {hint}keys are {allowed}, and group.field=value")


def _check_option(group: str, value: str) -> None:
    allowed = options(group)
    if value in allowed:
        return
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown {group} {value!r}; {hint}choose one of {', '.join(allowed)}")


def compose_config(overrides: list[str]) -> DictConfig:
    """The composed, unchecked config of one cell (or of an experiment, with its `sweep`)."""
    return copy.deepcopy(_composed(tuple(overrides)))


def build_cell(overrides: Sequence[str], *, method_name: str) -> RunConfig:
    """The checked config of one cell, as `build(compose_config(overrides))` has it.

    No group reads another, so each group's choice is composed and built once, whatever it is
    combined with: a sweep of a thousand cells costs as many compositions as it has models, methods
    and bits.

    Raises:
        UserError: a key that does not exist, a value of the wrong type or out of range.
    """
    parts: dict[str, list[str]] = {}
    for item in overrides:
        head = re.split(r"[.@]", key_of(item), maxsplit=1)[0]
        parts.setdefault(head if head in GROUPS else "", []).append(item)
    shared = tuple(parts.pop("", []))
    built = {
        group: copy.deepcopy(_built((*shared, *parts.get(group, ())), group)) for group in GROUPS
    }
    return _assembled(_composed(shared), built, method_name=method_name)


@functools.cache
def _built(overrides: tuple[str, ...], group: str) -> Any:
    return _part(_composed(overrides), group)


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            return compose(config_name="config", overrides=list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_plain(error)) from error


def _plain(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__


def _locate(target: str) -> type:
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_={target!r} cannot be imported: {error}") from error
    if not is_dataclass(found) or not isinstance(found, type):
        raise UserError(f"_target_={target!r} is no dataclass; put @dataclass(kw_only=True) on it")
    return found


def _unknown_field(key: str, allowed: list[str]) -> UserError:
    where, _, name = key.partition(".")
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {where}.{near[0]}? " if near else ""
    return UserError(f"unknown key {key}; {hint}fields are {', '.join(allowed)}")


@functools.cache
def _field_names(group: str, option: str) -> list[str]:
    content = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert isinstance(content, DictConfig)
    return [str(name) for name in content if name != "_target_"]


def check_fields(key: str, *, option: str) -> None:
    """Refuses `group.field` when the group's chosen yaml has no such field."""
    group, _, rest = key.partition(".")
    if group not in GROUPS or not rest:
        return
    allowed = _field_names(group, option)
    if rest.split(".")[0] not in allowed:
        raise _unknown_field(f"{group}.{rest.split('.')[0]}", allowed)


def _structured(kind: type, node: Any, *, where: str) -> Any:
    """The dataclass of a node; unknown keys, wrong types and bad values name the key."""
    plain = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    plain.pop("_target_", None)
    allowed = [item.name for item in fields(kind)]
    for key in plain:
        if key not in allowed:
            raise _unknown_field(f"{where}.{key!s}", allowed)
    missing = [f.name for f in fields(kind) if plain.get(f.name) == _REQUIRED]
    if missing:
        raise UserError(f"{where}.{missing[0]} is not given; give {where}.{missing[0]}=...")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), plain)
        built = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{where}: {_plain(error)}") from error
    assert is_dataclass(built)
    return built


def build(node: DictConfig, *, method_name: str) -> RunConfig:
    """Checks a composed config and builds its dataclasses.

    Raises:
        UserError: a key that does not exist, a value of the wrong type or out of range.
    """
    parts = {group: _part(node, group) for group in GROUPS}
    return _assembled(node, parts, method_name=method_name)


def _part(node: DictConfig, group: str) -> Any:
    kind = _locate(str(node.method._target_)) if group == "method" else _SCHEMAS[group]
    return _structured(kind, node[group], where=group)


def _assembled(node: DictConfig, parts: dict[str, Any], *, method_name: str) -> RunConfig:
    config = RunConfig(
        **parts,
        method_name=method_name,
        seed=_integer(node, "seed"),
        device=str(node.device),
        execution=str(node.execution),
        activation_code=str(node.activation_code),
        fuse_activations=_boolean(node, "fuse_activations"),
        num_threads=None if node.num_threads is None else _integer(node, "num_threads"),
        latents=str(node.latents),
        image=str(node.image),
        statistics_gigabytes=(
            None if node.statistics_gigabytes is None else _positive(node, "statistics_gigabytes")
        ),
        replay_gigabytes=_positive(node, "replay_gigabytes"),
        out=str(node.out),
        group=str(node.group),
    )
    _check_values(config)
    _check_method(config.method)
    return _settled(config)


def _check_method(method: Any) -> None:
    """What a new method is likely to lack; a stub whose body is `...` returns None."""
    kind = type(method).__name__
    lacking = [name for name in _METHOD if not callable(getattr(method, name, None))]
    if lacking:
        raise UserError(f"method {kind} has no {', '.join(lacking)}; see Method in segquant.core")
    if not isinstance(needs := method.needs(), StatisticsNeeds):
        raise UserError(f"{kind}.needs() returned {needs!r}; it must return StatisticsNeeds(...)")


def _settled(config: RunConfig) -> RunConfig:
    """What a job decides on its node is decided here: results depend on it, so all must agree."""
    jobs = config.cluster.jobs
    if jobs is None:
        return config
    device = config.device
    if device == "auto":
        device = "cuda" if jobs.gpus else "cpu"
    return replace(config, device=device, num_threads=config.num_threads or jobs.cpus)


def _boolean(node: DictConfig, key: str) -> bool:
    value = node[key]
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} is neither true nor false")
    return value


def _integer(node: DictConfig, key: str) -> int:
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}={value!r} is not an integer")
    return value


def _positive(node: DictConfig, key: str) -> float:
    value = node[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{key}={value!r}; give a number above 0")
    return float(value)


def _check_values(config: RunConfig) -> None:
    model, dataset, metrics = config.model, config.dataset, config.metrics
    _one_of("model.dtype", model.dtype, ("float32", "bfloat16", "float16"))
    _one_of("dataset.kind", dataset.kind, ("shapes", "prompts"))
    _one_of("execution", config.execution, EXECUTIONS)
    _one_of("activation_code", config.activation_code, ACTIVATION_CODES)
    if config.activation_code != "method" and config.execution == "simulated":
        raise UserError(
            f"activation_code={config.activation_code} with execution=simulated; codes are the "
            "kernels': set execution=kernel or auto"
        )
    if config.fuse_activations and config.execution == "simulated":
        raise UserError(
            "fuse_activations=true with execution=simulated; it is the kernels that activations go "
            "into: set execution=kernel or auto"
        )
    _one_of("latents", config.latents, ("per_prompt", "shared"))
    _one_of("image", config.image, ("png", "jpeg"))
    _one_of("logger.mode", config.logger.mode, ("offline", "online", "disabled"))
    for name, value, least in (
        ("seed", config.seed, 0),
        ("dataset.seed", dataset.seed, 0),
        ("dataset.calibration_seed", dataset.calibration_seed or 0, 0),
        ("model.num_inference_steps", model.num_inference_steps, 1),
        ("model.batch_size", model.batch_size, 1),
        ("dataset.evaluation_prompts", dataset.evaluation_prompts, 2),
        ("dataset.calibration_prompts", dataset.calibration_prompts, 1),
        ("metrics.teacher_forced_prompts", metrics.teacher_forced_prompts, 0),
        ("metrics.bootstrap_resamples", metrics.bootstrap_resamples, 100),
        ("num_threads", config.num_threads if config.num_threads is not None else 1, 1),
    ):
        if value < least:
            raise UserError(f"{name}={value}; it must be at least {least}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r}; choose one of {', '.join(allowed)}")
