"""A config as others may read it: what may be a secret is left out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from experiments.config.plain import plain
from experiments.config.run_config import RunConfig

HIDDEN = "(not told)"
_VARIABLES = "environment"  # of jobs: variables are where keys and passwords are given


def describe_config(config: RunConfig) -> dict[str, Any]:
    """The whole config in JSON's types, without values of environment variables.

    These are the variables of jobs, and what a setting reads with `${oc.env:NAME}`.
    """
    described = plain(asdict(config))
    assert isinstance(described, dict)
    hidden = _hide(described, "", frozenset(described.pop("from_environment")))
    assert isinstance(hidden, dict)
    return hidden


def _hide(value: Any, key: str, secret: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: dict.fromkeys(item, HIDDEN)
            if name == _VARIABLES and key.startswith("cluster") and isinstance(item, dict)
            else _hide(item, f"{key}.{name}".lstrip("."), secret)
            for name, item in value.items()
        }
    return HIDDEN if key in secret else value
