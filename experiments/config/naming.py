"""What a cell is called: its keys in conf/, and every setting that is not the yaml's own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evaluation.records import label
from experiments.config.parts import settings_of
from experiments.config.places import read_yaml
from experiments.config.plain import plain
from experiments.config.run_config import RunConfig

_DEFAULT_REPLAY = {
    "latents": "per_prompt",
    "image": "png",
    "execution": "simulated",
    "activation_code": "method",
    "fuse_activations": False,
}


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Settings of the method, the bits and the sampling that differ from conf/, by dotted key."""
    changed: dict[str, Any] = {}
    groups = {
        "method": (config.method_name, plain(settings_of(config.method))),
        "bits": (config.bits.name, plain(asdict(config.bits))),
    }
    for group, (option, values) in groups.items():
        default = _flat(read_yaml(group, option))
        for key, value in _flat(values).items():
            if key in default and default[key] != value:
                changed[f"{group}.{key}"] = value
    for key, usual in _DEFAULT_REPLAY.items():
        if getattr(config, key) != usual:
            changed[key] = getattr(config, key)
    return changed


def names(config: RunConfig) -> tuple[str, str, str]:
    """Model, method and bits as a table prints them."""
    settings = changed_settings(config)
    return (
        config.model.name,
        label(config.method_name, settings, group="method"),
        label(config.bits.name, settings, group="bits"),
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
