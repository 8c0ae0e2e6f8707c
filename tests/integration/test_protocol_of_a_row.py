"""What each row must say of itself, held against the record of a small run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.records import Record, read_record
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
Read = Callable[[Record], Any]


def _said(name: str) -> Read:
    return lambda record: record.protocol[name]


FIELDS: dict[str, Read] = {
    "model": lambda record: record.model,
    "model weights": _said("model_weights"),
    "scheduler": _said("scheduler"),
    "steps": _said("num_inference_steps"),
    "resolution": _said("resolution"),
    "dtype": _said("dtype"),
    "attention backend": lambda record: record.protocol["attention"]["backend"],
    "attention kernels": lambda record: record.protocol["attention"]["scaled_dot_product_kernels"],
    "prompts hash": _said("prompts_hash"),
    "calibration prompts hash": _said("calibration_prompts_hash"),
    "N": _said("n"),
    "seed rule": _said("seed_rule"),
    "image format": _said("image_format"),
    "W bits": _said("weight_bits"),
    "A bits": _said("activation_bits"),
    "granularity of weights": _said("weight_granularity"),
    "granularity of activations": _said("activation_granularity"),
    "symmetric": _said("symmetric"),
    "%Linear-FLOPs quantized": _said("linear_flops_quantized_fraction"),
    "%weights quantized": _said("denoiser_weights_quantized_fraction"),
    "effective bits/weight": lambda record: record.effective_bits_per_weight,
    "calibration forwards": lambda record: record.calibration_forwards,
    "calibration seconds": lambda record: record.seconds["calibration"],
    "search candidates": lambda record: record.search_candidates,
    "execution": lambda record: record.execution_by_layer_class,
    "device": lambda record: record.environment["device"],
    "torch": lambda record: record.environment["packages"]["torch"],
    "diffusers": lambda record: record.environment["packages"]["diffusers"],
    "git commit": lambda record: record.environment["git"]["commit"],
}
# what may be empty or false, and is there all the same
KEPT: dict[str, Read] = {
    "revision": _said("model_revision"),  # of a folder there is none
    "skipped layers": lambda record: [layer["reason"] for layer in record.layers_kept],
    "group of weights": _said("weight_group_size"),
    "group of activations": _said("activation_group_size"),
    "dynamic": _said("activation_dynamic"),
    "driver and clocks": lambda record: record.environment["gpu"],  # without a GPU: none
    "text encoder": _said("text_encoder_quantized"),
    "VAE": _said("vae_quantized"),
}


def test_a_record_has_every_field_of_the_protocol(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    given = small("tiny_unet", "method=smooth_search,fp", "bits=w4a8_int,w16a16", f"out={tmp_path}")
    given = [word for word in given if "guidance_scale" not in word] + ["model.guidance_scale=null"]
    assert segbench("run", "-m", *given).status == 0
    records = [read_record(path) for path in (tmp_path / "cells").glob("*/record.json")]
    done = {(one.method, one.bits): one for one in records if one.status == "ok"}
    quantized = done["smooth_search", "w4a8_int"]
    lacking = [name for name, read in FIELDS.items() if read(quantized) in (None, "", [], {}, 0)]
    assert not lacking
    values = {name: read(quantized) for name, read in KEPT.items()}
    assert values["group of weights"] is None
    assert values["dynamic"] is True
    assert quantized.protocol["guidance_scale"] == 5.0  # StableDiffusionXLPipeline's own
    part = quantized.protocol["linear_flops_quantized_fraction"]
    assert 0.9 < part <= 1.0
    assert done["fp", "w16a16"].protocol["linear_flops_quantized_fraction"] == 0.0
