"""Gigabytes of every stage of a cell, as far as they are known before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from experiments.planning.memory_plan import StageMemory, plan_stages
from experiments.planning.traced_shapes import TracedShapes, trace_shapes
from experiments.readiness.known_shapes import call_inputs, known_denoiser, other_parts
from experiments.sampling.calibrate import calibration_batch_size, recorded_rows
from segquant.core.memory import plan_groups
from segquant.core.predictions import tensors_in

if TYPE_CHECKING:
    from experiments.cell.cell import Cell

# by the cells of one model
SHARED_STAGES = ("embeddings", "reference", "trajectory", "calibration", "inputs")
_IMAGE_BYTES = 4  # of a pixel, at most: a PNG of noise
_DEFAULT_SIDE = 1024  # pixels, where the yaml does not say
_PLANNED = {"reference": "reference", "calibration": "calibration", "quantized": "quantization"}
_PLANNED["embeddings"] = "embeddings"
_PLANNED |= {"images": "images", "trajectory": "reference", "inputs": "reference"}
_plans: dict[str, dict[str, StageMemory]] = {}
_traced: dict[str, TracedShapes] = {}


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The most that a stage takes; None where it is not known."""

    stage: str
    device_bytes: int | None  # 0 where the device is the CPU: its memory is the host's
    host_bytes: int | None
    disk_bytes: int | None


def stage_gigabytes(cell: Cell) -> list[StageCost]:
    """What each stage of a cell takes, shared ones first.

    Raises:
        ValueError: a layer's statistics alone are above `statistics_gigabytes`.
    """
    config, dataset = cell.config, cell.config.dataset
    model = config.model
    pixels = (model.height or _DEFAULT_SIDE) * (model.width or _DEFAULT_SIDE)
    images = dataset.evaluation_prompts * pixels * _IMAGE_BYTES
    call = _call_bytes(cell)
    calls = None if call is None else call * model.num_inference_steps
    plan = _plan(cell)
    disk: dict[str, int | None] = {}
    if model.embeddings:  # what a call is given of a text is most of what is kept of it
        prompts = dataset.evaluation_prompts
        prompts += dataset.calibration_prompts if cell.quantizes else 0
        disk["embeddings"] = None if call is None else call * prompts
    disk["reference"] = images
    traced = min(config.metrics.teacher_forced_prompts, dataset.evaluation_prompts)
    if traced:
        disk["trajectory"] = None if calls is None else calls * traced
    if cell.quantizes:
        disk["calibration"] = plan["calibration"].disk_bytes if plan else None
        if config.method.needs().replay:
            limit = int(config.replay_gigabytes * 1e9)
            all_calls = limit if calls is None else calls * dataset.calibration_prompts
            disk["inputs"] = min(limit, all_calls)
        disk["quantized"] = plan["quantization"].disk_bytes if plan else None
    if cell.quantizes or cell.floor is not None:
        disk["images"] = images
    return [_cost(cell, stage, plan, disk=count) for stage, count in disk.items()]


def runs_on_cpu(cell: Cell) -> bool:
    """Whether the CPU is the device, here or where the jobs run."""
    device = cell.config.device  # of jobs, what their config decided: never auto
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def _cost(cell: Cell, stage: str, plan: dict[str, StageMemory], *, disk: int | None) -> StageCost:
    planned = plan.get(_PLANNED[stage])
    if planned is None:  # of the model's yaml: what its files take
        weights = cell.config.model.weights_bytes
        device, host = (0, weights) if runs_on_cpu(cell) else (weights, weights)
        return StageCost(stage=stage, device_bytes=device, host_bytes=host, disk_bytes=disk)
    device, host = planned.device_bytes, planned.host_bytes
    if runs_on_cpu(cell):
        device, host = 0, planned.total_bytes
    return StageCost(stage=stage, device_bytes=device, host_bytes=host, disk_bytes=disk)


def _plan(cell: Cell) -> dict[str, StageMemory]:
    """Stages by the plan of memory; nothing where the denoiser or its inputs are not known."""
    config, needs = cell.config, cell.around.needs
    of_method = config.method.needs()
    key = repr((config.model, config.bits, of_method.gram, needs, config.statistics_gigabytes))
    key += repr((config.dataset.calibration_prompts, runs_on_cpu(cell)))
    if key not in _plans:
        _plans[key] = planned_stages(
            cell,
            on_cpu=runs_on_cpu(cell),
            offload=cell.config.model.offload,
            gigabytes=cell.config.statistics_gigabytes,
        )
    return _plans[key]


def planned_stages(
    cell: Cell, *, on_cpu: bool, offload: str, gigabytes: float | None
) -> dict[str, StageMemory]:
    """Stages by the plan of memory; nothing where the denoiser or its inputs are not known.

    Args:
        gigabytes: for statistics.

    Raises:
        ValueError: a layer's statistics alone are above that.
    """
    config, needs, model = cell.config, cell.around.needs, cell.config.model
    shapes, others = _shapes(cell), other_parts(model)
    if shapes is None or others is None:
        return {}
    stages = plan_stages(
        shapes.sizes,
        bits=config.bits,
        needs=config.method.needs(),
        statistics=plan_groups(
            shapes.groups,
            gram=needs.gram,
            rows=recorded_rows(needs),
            budget_bytes=None if gigabytes is None else int(gigabytes * 1e9),
        ),
        forward_bytes=shapes.forward_bytes,
        on_cpu=on_cpu,
        offload=offload,
        others=others,
        embeddings=model.embeddings,
    )
    return {stage.stage: stage for stage in stages}


def _shapes(cell: Cell) -> TracedShapes | None:
    config, model = cell.config, cell.config.model
    size = calibration_batch_size(config, prompts=config.dataset.calibration_prompts)
    key = repr((model, size))
    if key in _traced:
        return _traced[key]
    denoiser = known_denoiser(model)
    if denoiser is None:
        return None
    recorded = call_inputs(denoiser, model, batch=size)
    sampled = call_inputs(denoiser, model, batch=model.batch_size)
    if recorded is None or sampled is None:
        return None
    _traced[key] = trace_shapes(denoiser, recorded=recorded, sampled=sampled)
    return _traced[key]


def _call_bytes(cell: Cell) -> int | None:
    """What one prompt's call of the denoiser is given."""
    denoiser = known_denoiser(cell.config.model)
    inputs = None if denoiser is None else call_inputs(denoiser, cell.config.model, batch=1)
    return None if inputs is None else sum(tensor.nbytes for tensor in tensors_in(inputs))
