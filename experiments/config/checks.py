"""What a request as a whole must keep to: types, choices, and what depends on two values."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from typing import Any

from experiments.config.choices import ACTIVATION_CODES, EXECUTIONS, KERNELS
from experiments.config.limits import MOST_PIXELS, MOST_STEPS, check_number, check_pattern
from experiments.config.run_config import RunConfig
from experiments.errors import UserError

OFFLOADS = ("none", "model", "blocks")
_SIDE = 1024  # pixels, where the pipeline's own size is not known here
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_PROMPTS = "prompts come from dataset="
_IMAGES = "pictures come from the data set's rows, by the same name"
_OWN_FIELD = "it is a setting of its own"
_IN_EVERY_CALL = "every call gets it"
# What the harness gives to a pipeline's call itself, and where it has it from.
RESERVED = {
    "prompt": _PROMPTS,
    "generator": "noise comes from seed= and the prompts' ids",
    "latents": "noise comes from seed= and the prompts' ids",
    "output_type": f"images are measured as they come: {_IN_EVERY_CALL}",
    "return_dict": f"images are measured as they come: {_IN_EVERY_CALL}",
    "num_images_per_prompt": "there is one image a prompt: give more prompts",
    "callback": "it is code, which no setting can hold",
    "callback_steps": "there is no callback",
    "callback_on_step_end": "it is code, which no setting can hold",
    "callback_on_step_end_tensor_inputs": "there is no callback",
    "prompt_embeds": _PROMPTS,
    "pooled_prompt_embeds": _PROMPTS,
    "negative_prompt_embeds": "give negative_prompt",
    "negative_pooled_prompt_embeds": "give negative_prompt",
    "prompt_attention_mask": _PROMPTS,
    "negative_prompt_attention_mask": "give negative_prompt",
    "image": _IMAGES,
    "mask_image": _IMAGES,
    "control_image": _IMAGES,
    "height": f"{_OWN_FIELD}: model.height",
    "width": f"{_OWN_FIELD}: model.width",
    "num_inference_steps": f"{_OWN_FIELD}: model.num_inference_steps",
    "guidance_scale": f"{_OWN_FIELD}: model.guidance_scale",
}


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


def text(values: Mapping[str, Any], key: str) -> str:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise UserError(f"{key}={value!r} is not a text")
    return str(value)


def check_values(config: RunConfig) -> None:
    """Refuses what no run can be made of; each group's own numbers have been looked at.

    Raises:
        UserError: a value out of its range, or one that makes no sense with another.
    """
    _one_of("model.dtype", config.model.dtype, ("float32", "bfloat16", "float16"))
    _one_of("execution", config.execution, EXECUTIONS)
    _one_of("activation_code", config.activation_code, ACTIVATION_CODES)
    if config.activation_code != "method" and config.execution not in KERNELS:
        raise UserError(
            f"activation_code={config.activation_code} with execution={config.execution}; codes "
            "are the kernels': set execution=kernel or auto"
        )
    if config.fuse_activations and config.execution not in KERNELS:
        raise UserError(
            f"fuse_activations=true with execution={config.execution}; it is the kernels that "
            "activations go into: set execution=kernel or auto"
        )
    _one_of("latents", config.latents, ("per_prompt", "shared"))
    _one_of("image", config.image, ("png", "jpeg"))
    _one_of("logger.mode", config.logger.mode, ("offline", "online", "disabled"))
    for name in ("seed", "num_threads", "statistics_gigabytes", "replay_gigabytes"):
        if getattr(config, name) is not None:
            check_number(name, getattr(config, name))
    if _DEVICE.fullmatch(config.device) is None:
        raise UserError(f"device={config.device!r}; use auto, cpu, cuda or cuda:N")
    for pattern in config.bits.keep:
        check_pattern(pattern, key="bits.keep")
    for pattern in config.model.keep:
        check_pattern(pattern, key="model.keep")
    _one_of("model.offload", config.model.offload, OFFLOADS)
    _check_call(config)
    _check_held_out(config)
    _check_python(config)
    _check_cost(config)


def _check_call(config: RunConfig) -> None:
    for key in config.model.call:
        if key in RESERVED:
            raise UserError(f"model.call.{key} is segbench's own: {RESERVED[key]}")
    for name in ("height", "width"):
        side = getattr(config.model, name)
        if side is not None and side % 2:
            raise UserError(f"model.{name}={side}; give an even number of pixels")


def _check_held_out(config: RunConfig) -> None:
    """A search that holds a part of the calibration out needs a second part."""
    if getattr(config.method, "held_out", False) and config.dataset.calibration_prompts < 2:
        raise UserError(
            "method.held_out=true with dataset.calibration_prompts=1; there is no other prompt "
            "to judge on: give two or more, or set method.held_out=false"
        )


def _check_python(config: RunConfig) -> None:
    """What starts the jobs of this machine is known here; a cluster's nodes may have others."""
    jobs = config.cluster.jobs
    if jobs is None or jobs.executor == "slurm" or not jobs.python:
        return
    words = shlex.split(jobs.python)
    if not words or shutil.which(words[0]) is None:
        raise UserError(
            f"cluster.jobs.python={jobs.python!r}: no such program here; give one that starts "
            "Python, or null for this one"
        )


def _check_cost(config: RunConfig) -> None:
    """Refuses a plan that would not end, with its cost."""
    model, dataset = config.model, config.dataset
    prompts = dataset.evaluation_prompts + dataset.calibration_prompts
    steps = prompts * model.num_inference_steps
    if steps > MOST_STEPS:
        raise UserError(
            f"{prompts} prompts of {model.num_inference_steps} steps are {steps:.2g} steps of the "
            f"denoiser a row, above {MOST_STEPS:.0e}; lower dataset.evaluation_prompts or "
            "model.num_inference_steps"
        )
    pixels = model.batch_size * (model.height or _SIDE) * (model.width or _SIDE)
    if pixels > MOST_PIXELS:
        raise UserError(
            f"model.batch_size={model.batch_size} images of {model.height}x{model.width} are "
            f"{pixels * 12 / 1e9:.0f} GB of pixels in one call, above "
            f"{MOST_PIXELS * 12 / 1e9:.0f} GB; lower model.batch_size, model.height or model.width"
        )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r}; choose one of {', '.join(allowed)}")
