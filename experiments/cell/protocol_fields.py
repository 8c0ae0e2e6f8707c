"""What a row must say of itself to be compared: the protocol fields of a record."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import torch

from experiments.config.plain import method_fields
from experiments.errors import UserError
from experiments.sampling.model_folder import (
    SAFETY_CHECKER,
    check_folder,
    denoisers_left_out,
    denoisers_of,
    found_revision,
    pipeline_index,
    variant_of,
)
from experiments.sampling.model_parts import given_parts
from experiments.sampling.pipeline_classes import pipeline_class
from experiments.sampling.schedulers import scheduler_fields
from experiments.sampling.single_files import single_file
from segquant.core.over_fit import over_fit_fields
from segquant.core.schemes import BITS_OF_BYTE, UNQUANTIZED_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evaluation.records import Record
    from experiments.cell.cell import Cell
    from experiments.cell.denoiser import KernelUse
    from experiments.config.run_config import ModelConfig
    from segquant.core.method_interface import QuantizationReport
    from segquant.core.other_weights import WeightCount
    from segquant.core.schemes import TensorScheme

_FLOPS = "linear_flops_quantized_fraction"
SEED_RULES = {
    "per_prompt": "sha256('noise|<seed>|<prompt id>'), one CPU generator per prompt",
    "shared": "sha256('noise|<seed>|shared'), the same noise for every prompt (latents=shared)",
}
IMAGE_FORMATS = {
    "png": "PNG, 8 bit RGB",
    "jpeg": "8 bit RGB through JPEG, quality 75, kept as PNG (image=jpeg)",
}


def describe(cell: Cell) -> dict[str, Any]:
    """Everything about the run that is known before it starts."""
    config, around = cell.config, cell.around
    model, dataset, bits = config.model, around.dataset, config.bits
    folder = check_folder(model)
    index = pipeline_index(folder)
    parts = given_parts(model, folder, index)
    return {
        "model_weights": around.weights,
        "model_revision": found_revision(model),
        "model_variant": None if single_file(model.path) else variant_of(folder, besides=parts),
        "single_file": None if single_file(model.path) is None else model.path,
        "parts": {name: around.describe_part(part) for name, part in parts.items()},
        "lora": None if model.lora is None else _adapter(cell),
        "safety_checker": "switched off" if index.get(SAFETY_CHECKER, [None])[0] else None,
        "pipeline": model.pipeline or index.get("_class_name"),
        "denoisers": denoisers_of(model, index),
        "denoisers_left_out": denoisers_left_out(model, index),
        "scheduler": scheduler_fields(model, folder),
        "num_inference_steps": model.num_inference_steps,
        "guidance_scale": _guidance(model, index),
        "call": dict(model.call),
        "resolution": [model.height, model.width],
        "batch_size": model.batch_size,
        "dtype": model.dtype,
        "offload": model.offload,
        "texts": "encoded beforehand" if model.embeddings else "encoded in every call",
        "model_keep": dict(model.keep),
        "attention": attention_backend(),
        "dataset": method_fields(config.dataset),
        "prompts_hash": around.prompts_hash.evaluation,
        "calibration_prompts_hash": around.prompts_hash.calibration,
        "n": len(dataset.evaluation),
        "calibration_prompts": len(dataset.calibration),
        "calibration_seed": config.dataset.calibration_seed,
        "seed_rule": SEED_RULES[config.latents],
        "image_format": IMAGE_FORMATS[config.image],
        "weight_bits": bits.weight.num_bits,
        "weight_granularity": _granularity(bits.weight),
        "weight_group_size": bits.weight.group_size,
        "activation_bits": bits.activation.num_bits,
        "activation_granularity": _granularity(bits.activation),
        "activation_group_size": bits.activation.group_size,
        "activation_dynamic": bits.activation.dynamic,
        "symmetric": {"weight": bits.weight.symmetric, "activation": bits.activation.symmetric},
        "number_format": {
            "weight": bits.weight.number_format.name,
            "activation": bits.activation.number_format.name,
        },
        "range_rule": {
            "weight": bits.weight.range_rule.name,
            "activation": bits.activation.range_rule.name,
        },
        "scale_rule": {
            "weight": bits.weight.scale_rule.name,
            "activation": bits.activation.scale_rule.name,
        },
        "keep_patterns": list(bits.keep),
        "keep_budget": bits.keep_budget,
        "mixed_bits": list(bits.mixed_bits),
        "mixed_budget": bits.mixed_budget,
        "method": method_fields(config.method),
        "evaluator": around.evaluator_key,
        "judges": around.metric_weights,
        "device": around.device_name,
        "num_threads": around.num_threads,
        "noise_floor": _floor(cell),
        "versions": around.versions,
        "text_encoder_quantized": False,
        "vae_quantized": False,
    }


def _adapter(cell: Cell) -> dict[str, Any]:
    model = cell.config.model
    said = {"path": model.lora, "sha256": cell.around.adapter, "scale": model.lora_scale}
    return {**said, "fused": "into the weights, before calibration"}


def _guidance(model: ModelConfig, index: Mapping[str, Any]) -> float | None:
    """What was given, else the default of the pipeline's own call; None where it takes none."""
    if model.guidance_scale is not None:
        return model.guidance_scale
    try:
        kind: Any = pipeline_class(
            index, path=model.path, name=model.pipeline, given=tuple(model.parts)
        )
    except UserError:  # the record of a failure says why
        return None
    parameter = inspect.signature(kind.__call__).parameters.get("guidance_scale")
    default = None if parameter is None else parameter.default
    return float(default) if isinstance(default, int | float) else None


def attention_backend() -> dict[str, Any]:
    """What computes attention: diffusers' choice, and which of torch's kernels it may take."""
    cuda = torch.backends.cuda
    allowed = {
        "flash": cuda.flash_sdp_enabled(),
        "memory_efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return {
        "backend": os.environ.get("DIFFUSERS_ATTN_BACKEND", "native"),
        "scaled_dot_product_kernels": [name for name, on in allowed.items() if on],
        "quantized": False,
    }


def _floor(cell: Cell) -> dict[str, int] | None:
    if cell.floor is None:
        return None
    return {"batch_size": cell.batch_size, "num_threads": cell.num_threads}


def _granularity(scheme: TensorScheme) -> str:
    if not scheme.quantized:
        return ""
    group = "" if scheme.group_size is None else f" {scheme.group_size}"
    return f"{scheme.granularity.name}{group}"


def fill_report(
    record: Record, report: QuantizationReport, *, kernels: KernelUse, unquantized: WeightCount
) -> None:
    """What was done to the denoiser, and what runs as products of codes."""
    record.layers_quantized = report.layers_quantized
    record.layers_kept = [dict(layer) for layer in report.layers_kept]
    record.layers_kept += [
        {"name": name, "reason": "not chosen: model.denoisers"}
        for name in record.protocol["denoisers_left_out"]
    ]
    record.execution_by_layer_class = {"Linear": record.execution}
    record.effective_bits_per_weight = report.effective_bits_per_weight
    record.extra_macs_fraction = report.extra_macs_fraction
    record.weight_bytes = stored_bytes(unquantized, report)
    record.search_candidates = report.search_candidates
    record.method_elements = {"included": report.elements, "left_out": report.left_out}
    record.protocol |= coverage(unquantized, report)
    prompts = record.protocol["calibration_prompts"]
    record.protocol |= over_fit_fields(report.over_fit, prompts=prompts)
    if kernels.by_layer_class:
        record.execution_by_layer_class = kernels.by_layer_class
        record.method_elements["left_out"] = kernels.left_out
        record.protocol |= kernels.protocol


def fill_costs(record: Record, cell: Cell) -> None:
    """What the stages took, by whoever made them."""
    reference, images = cell.reference.build(), cell.images.build()
    record.seconds = {"reference": reference.seconds}
    record.protocol[_FLOPS] = 0.0  # where nothing is quantized
    if cell.quantized is not None:
        quantized = cell.quantized.build()
        record.calibration_forwards = quantized.notes["forwards"]
        record.protocol[_FLOPS] = quantized.notes[_FLOPS]
        record.quantize_peak_memory_bytes = quantized.peak_memory_bytes
        calibration = quantized.notes["calibration_seconds"]
        record.seconds |= {"calibration": calibration, "quantize": quantized.seconds}
    each = images.notes["seconds_per_image"]
    record.seconds["images"] = images.seconds
    count = len(cell.around.dataset.evaluation)
    record.seconds["seconds_per_image"] = images.seconds / count if each is None else each
    record.peak_memory_bytes = images.peak_memory_bytes
    if images.notes.get("not_finite"):
        record.protocol["images_not_finite"] = images.notes["not_finite"]


def coverage(unquantized: WeightCount, report: QuantizationReport) -> dict[str, Any]:
    """How much of the denoiser was quantized, by number of weights.

    Of Linears' weights: those of subclasses count, and parameters that no Linear holds.
    """
    linear, other = unquantized.products, unquantized.rest
    layers = report.layers_quantized
    quantized = sum(layer["in_features"] * layer["out_features"] for layer in layers)
    return {
        "linear_weights_quantized_fraction": quantized / linear if linear else 0.0,
        "denoiser_weights_quantized_fraction": quantized / (linear + other) if linear else 0.0,
        "linears_quantized": len(report.layers_quantized),
        "linears_kept": len(report.layers_kept),
    }


def stored_bytes(unquantized: WeightCount, report: QuantizationReport) -> int:
    """Bytes of the whole denoiser: weights of products as the report has them, else 16 bit."""
    return report.weight_bytes + unquantized.rest * UNQUANTIZED_BITS // BITS_OF_BYTE
