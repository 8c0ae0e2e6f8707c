"""What a row must say of itself to be compared: the protocol fields of a record."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from baselines.noise_floor import NoiseFloor
from experiments.config.run_config import RunConfig
from experiments.sampling.data import prompts_hash
from experiments.sampling.pipelines import check_folder
from segquant.core.input_statistics import linear_layers
from segquant.core.method_interface import QuantizationReport
from segquant.core.quantize import BITS_OF_BYTE
from segquant.core.schemes import UNQUANTIZED_BITS

if TYPE_CHECKING:
    from experiments.cell.bench import Bench

SEED_RULES = {
    "per_prompt": "sha256('noise|<seed>|<prompt id>'), one CPU generator per prompt",
    "shared": "sha256('noise|<seed>|shared'), the same noise for every prompt (latents=shared)",
}
IMAGE_FORMATS = {
    "png": "PNG, 8 bit RGB",
    "jpeg": "8 bit RGB through JPEG, quality 75, kept as PNG (image=jpeg)",
}


def plain(value: Any) -> Any:
    """JSON's types only: enums by member name, tuples as lists, paths as text."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def method_fields(method: Any) -> dict[str, Any]:
    """A method's class and settings."""
    kind = type(method)
    fields = plain(asdict(method))
    assert isinstance(fields, dict)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **fields}


def describe(bench: Bench, config: RunConfig) -> dict[str, Any]:
    """Everything about the run that is known before it starts."""
    model, dataset, bits = config.model, bench.dataset, config.bits
    folder = check_folder(model)
    index = json.loads((folder / "model_index.json").read_text())
    return {
        "model_weights": bench.weights,
        "model_revision": model.revision,
        "pipeline": index.get("_class_name"),
        "scheduler": _scheduler(folder),
        "num_inference_steps": model.num_inference_steps,
        "guidance_scale": model.guidance_scale,
        "resolution": [model.height, model.width],
        "batch_size": model.batch_size,
        "dtype": model.dtype,
        "attention": "native (scaled_dot_product_attention), not quantized",
        "prompts_hash": prompts_hash(dataset.evaluation),
        "calibration_prompts_hash": prompts_hash(dataset.calibration),
        "n": len(dataset.evaluation),
        "calibration_prompts": len(dataset.calibration),
        "seed_rule": SEED_RULES[config.latents],
        "image_format": IMAGE_FORMATS[config.image],
        "weight_bits": bits.weight.num_bits,
        "weight_granularity": _granularity(bits.weight),
        "activation_bits": bits.activation.num_bits,
        "activation_granularity": _granularity(bits.activation),
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
        "keep_patterns": list(bits.keep),
        "keep_budget": bits.keep_budget,
        "mixed_bits": list(bits.mixed_bits),
        "mixed_budget": bits.mixed_budget,
        "method": method_fields(config.method),
        "evaluator": bench.evaluator_key,
        "device": bench.sampler()["device"],
        "num_threads": bench.num_threads,
        "noise_floor": _floor(bench, config),
        "versions": bench.sampler()["versions"],
        "text_encoder_quantized": False,
        "vae_quantized": False,
    }


def _floor(bench: Bench, config: RunConfig) -> dict[str, int] | None:
    if not isinstance(config.method, NoiseFloor):
        return None
    count = bench.floor_threads(config.method)
    return {"batch_size": config.method.batch_size, "num_threads": count}


def _granularity(scheme: Any) -> str:
    if not scheme.quantized:
        return ""
    group = "" if scheme.group_size is None else f" {scheme.group_size}"
    return f"{scheme.granularity.name}{group}"


def _scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler" / "scheduler_config.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def coverage(unquantized: nn.Module, report: QuantizationReport) -> dict[str, Any]:
    """How much of the denoiser was quantized, by number of weights."""
    linear, other = _weights(unquantized)
    quantized = sum(one["in_features"] * one["out_features"] for one in report.layers_quantized)
    return {
        "linear_weights_quantized_fraction": quantized / linear if linear else 0.0,
        "denoiser_weights_quantized_fraction": quantized / (linear + other) if linear else 0.0,
        "linears_quantized": len(report.layers_quantized),
        "linears_kept": len(report.layers_kept),
    }


def stored_bytes(unquantized: nn.Module, report: QuantizationReport) -> int:
    """Bytes of the whole denoiser: Linear weights as the report has them, all else in 16 bit."""
    _, other = _weights(unquantized)
    return report.weight_bytes + other * UNQUANTIZED_BITS // BITS_OF_BYTE


def _weights(unquantized: nn.Module) -> tuple[int, int]:
    """Numbers of Linear weights and of all other parameters (biases, norms, convolutions)."""
    linear = sum(one.weight.numel() for one in linear_layers(unquantized).values())
    return linear, sum(one.numel() for one in unquantized.parameters()) - linear
