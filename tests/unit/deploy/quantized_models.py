"""A small denoiser of diffusers, quantized, and what it gives for one input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import segquant.diffusers as deployed
from segquant.core.layer_pass import quantize_layers
from segquant.core.layer_plan import LayerPlan
from segquant.core.recipe import LayerRecipe
from segquant.core.stepwise import StepRecorder
from segquant.method import SegQuant
from tests.unit.core import denoisers
from tests.unit.core.helpers import bits, calibrate

RECIPE = {"method": "segquant_a", "bits": "w8a8_int8"}


def quantized(
    name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Any, list[dict[str, Any]]]:
    """The denoiser as diffusers knows it, and its inputs."""
    model, batches, graph = denoisers.ALL[name]()
    if seed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.01 * seed)
    model = model.to(dtype)
    batches = [_cast(batch, dtype) for batch in batches]
    calibration = calibrate(model, batches, graph=graph)
    SegQuant().quantize(model, calibration=calibration, bits=bits(8, 8))
    return deployed.as_diffusers(model, recipe=RECIPE), batches


def output(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch)[0]
    return found


def _cast(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        key: value.to(dtype) if torch.is_tensor(value) and key in _STATES else value
        for key, value in batch.items()
    }


_STATES = ("hidden_states", "encoder_hidden_states", "pooled_projections", "sample")


def of_steps(activation: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The small UNet with static scales of its own for the step of each of its inputs."""
    model, batches, _ = denoisers.ALL["unet"]()
    calibration = calibrate(model, batches)
    with torch.no_grad(), StepRecorder(model) as recorder:
        for batch in batches:
            model(**batch)
    calibration.steps = recorder.statistics()
    quantize_layers(
        model,
        calibration=calibration,
        bits=bits(8, activation),
        recipe=LayerRecipe(),
        plan_of=lambda name, linear: LayerPlan(steps=calibration.steps[name]),
    )
    return model, batches
