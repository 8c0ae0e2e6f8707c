"""One group of a config as its dataclass: types checked, unknown keys and bad values refused."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evaluation.datasets.interface import Dataset
from experiments.config.limits import check_part, check_plain
from experiments.config.overrides import TARGET, unknown_field
from experiments.config.run_config import (
    ClusterConfig,
    LoggerConfig,
    MetricsConfig,
    ModelConfig,
)
from experiments.errors import UserError
from experiments.store.paths import resolve_path
from segquant.core.method_interface import Method, StatisticsNeeds
from segquant.core.schemes import Bits

REQUIRED = "???"  # a value that a file leaves to the command line
_SCHEMAS: dict[str, type] = {
    "model": ModelConfig,
    "metrics": MetricsConfig,
    "cluster": ClusterConfig,
    "logger": LoggerConfig,
    "bits": Bits,
}
_OWN_CLASS = ("method", "dataset")  # their yaml names the class
_METHOD_CALLS = tuple(name for name in vars(Method) if not name.startswith("_"))
_DATASET_CALLS = tuple(name for name in vars(Dataset) if not name.startswith("_"))
_DATASET_SETTINGS = tuple(name for name in Dataset.__annotations__ if not name.startswith("_"))
_DATASET_PATHS = ("path", "images", "root", "ids", "calibration_path")


def build_part(group: str, content: Mapping[str, Any]) -> Any:
    """The dataclass of a group.

    Raises:
        UserError: a key that does not exist, a value of the wrong type, a class that is none.
    """
    if group not in _OWN_CLASS:
        return _structured(_SCHEMAS[group], content, where=group)
    target = content.get(TARGET)
    if target is None:
        raise UserError(f"{group}: its yaml has no {TARGET}; name its class, module.Class")
    part = _structured(locate(str(target)), content, where=group)
    if group == "method":
        check_method(part)
    else:
        check_dataset(part)
        _resolve_paths(part)
    return part


def settings_of(method: Method) -> dict[str, Any]:
    """A method's settings: its fields."""
    assert is_dataclass(method)
    return asdict(method)


def locate(target: str) -> type:
    """The dataclass that a `_target_` names.

    Raises:
        UserError: it cannot be imported, for whatever reason, or is no dataclass.
    """
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{TARGET}={target!r} cannot be imported: {error}") from error
    except Exception as error:  # a file half written may raise anything
        said = f"{type(error).__name__}: {in_one_line(error)}"
        raise UserError(f"{TARGET}={target!r} cannot be imported: {said}") from error
    if not is_dataclass(kind) or not isinstance(kind, type):
        raise UserError(f"{TARGET}={target!r} is no dataclass; put @dataclass(kw_only=True) on it")
    return kind


def check_method(method: object) -> None:
    """What a new method is likely to lack; a stub whose body is `...` returns None."""
    kind = type(method).__name__
    lacking = [name for name in _METHOD_CALLS if not callable(getattr(method, name, None))]
    if lacking:
        raise UserError(f"method {kind} has no {', '.join(lacking)}; see Method in segquant.core")
    assert isinstance(method, Method)
    if not isinstance(needs := method.needs(), StatisticsNeeds):
        raise UserError(f"{kind}.needs() returned {needs!r}; it must return StatisticsNeeds(...)")


def check_dataset(dataset: object) -> None:
    """What a new data set is likely to lack."""
    lacking = [name for name in _DATASET_SETTINGS if not hasattr(dataset, name)]
    lacking += [name for name in _DATASET_CALLS if not callable(getattr(dataset, name, None))]
    if lacking:
        raise UserError(
            f"data set {type(dataset).__name__} has no {', '.join(lacking)}; see Dataset in "
            "evaluation.datasets.interface"
        )


def in_one_line(error: Exception) -> str:
    """What an error of Hydra, omegaconf or somebody's module says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__


def _resolve_paths(dataset: Any) -> None:
    """A relative path is one from here, else one from the project's root."""
    for name in _DATASET_PATHS:
        given = getattr(dataset, name, None)
        if isinstance(given, str) and not Path(given).exists() and resolve_path(given).exists():
            setattr(dataset, name, str(resolve_path(given)))


def _structured(kind: type, content: Mapping[str, Any], *, where: str) -> Any:
    """The dataclass of a group; unknown keys, wrong types and bad values name the key."""
    plain = {key: value for key, value in content.items() if key != TARGET}
    allowed = [item.name for item in fields(kind)]
    for key in plain:
        if key not in allowed:
            raise unknown_field(f"{where}.{key!s}", allowed)
    missing = [name for name in allowed if plain.get(name) == REQUIRED]
    if missing:
        raise UserError(f"{where}.{missing[0]} is not given; give {where}.{missing[0]}=...")
    check_plain(plain, where=where)
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), plain))
    except (OmegaConfBaseException, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{where}: {in_one_line(error)}") from error
    assert is_dataclass(built)
    check_part(where, built)
    return built
