"""The ranges of a config's values, and what depends on two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.config.choices import ACTIVATION_CODES, EXECUTIONS
from experiments.config.run_config import RunConfig
from experiments.errors import UserError


def boolean(values: Mapping[str, Any], key: str) -> bool:
    value = values[key]
    if not isinstance(value, bool):
        raise UserError(f"{key}={value} is neither true nor false")
    return value


def integer(values: Mapping[str, Any], key: str) -> int:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}={value!r} is not an integer")
    return value


def positive(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{key}={value!r}; give a number above 0")
    return float(value)


def check_values(config: RunConfig) -> None:
    """Refuses what no run can be made of.

    Raises:
        UserError: a value out of its range, or one that makes no sense with another.
    """
    model, dataset, metrics = config.model, config.dataset, config.metrics
    _one_of("model.dtype", model.dtype, ("float32", "bfloat16", "float16"))
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
