"""nunchaku-lite: W4A4 in groups of 64 with a low-rank branch, as diffusers loads it on a GPU.

Codes go over as they are. Everything else is rounded once to the kernels' own type, bfloat16 or
float16: scales, smoothing, low-rank factors. So the file holds the recipe's codes, and its outputs
are the recipe's up to that type's rounding and the activation codes that it tips.
Source: diffusers 0.42 (`quantizers/nunchaku`); the kernels divide the input by `smooth_factor`
before they quantize it, and give the low-rank branch the input as it was.

Legend: O output features, I input features, G groups, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segquant.core.linear import QuantLinear
from segquant.core.schemes import Granularity, TensorScheme
from segquant.core.spec_json import dtype_name
from segquant.deploy.other_formats.form_interface import Conversion, Form, Layers
from segquant.deploy.other_formats.layer_facts import (
    Beyond,
    beyond,
    divisor,
    is_integer,
    row_scales,
)
from segquant.deploy.other_formats.nunchaku_layout import (
    RANK_STEP,
    TILE_COLUMNS,
    TILE_ROWS,
    tile_codes,
    tile_down,
    tile_scales,
    tile_up,
    tile_vector,
)

BITS = 4
GROUP = 64
KERNEL_TYPES = (torch.bfloat16, torch.float16)


def _obstacles(layer: QuantLinear) -> list[str]:
    spec = layer.spec
    found = beyond(layer, known=(Beyond.smoothing, Beyond.balance, Beyond.low_rank))
    if not (is_integer(layer) and _fits(spec.weight) and _fits(spec.activation)):
        found.append(
            f"weights or activations that are not int4 in groups of {GROUP} (its nvfp4 has no "
            "calibrated scale of activations)"
        )
    if spec.in_features % TILE_COLUMNS or spec.out_features % TILE_ROWS:
        found.append(f"input or output features that {TILE_ROWS} does not divide")
    if layer.dtype not in KERNEL_TYPES:
        found.append(
            f"in {dtype_name(layer.dtype)}: its kernels compute in bfloat16 or float16 (load the "
            "denoiser with torch_dtype=torch.bfloat16)"
        )
    return found


def _fits(scheme: TensorScheme) -> bool:
    grouped = scheme.granularity is Granularity.per_group and scheme.group_size == GROUP
    return scheme.num_bits == BITS and grouped


def _rank(layers: Layers) -> int:
    """One for all layers; factors of a lower rank are filled up with zeros."""
    most = max(layer.spec.rank for layer in layers.values())
    return max(-(-most // RANK_STEP) * RANK_STEP, RANK_STEP)


def _layer_tensors(layer: QuantLinear, *, rank: int) -> dict[str, Tensor]:
    own = layer.dtype
    smooth_I = divisor(layer)
    if smooth_I is None:
        smooth_I = torch.ones(layer.in_features, device=layer.weight_scale.device)
    up_OR, down_RI = _factors(layer, smooth_I=smooth_I, rank=rank)
    tensors = {
        "qweight": tile_codes(layer.integer_codes()),
        "wscales": tile_scales(row_scales(layer)).to(own),
        "smooth_factor": tile_vector(smooth_I).to(own),
        "proj_down": tile_down(down_RI).to(own),
        "proj_up": tile_up(up_OR).to(own),
    }
    return tensors if layer.bias is None else {**tensors, "bias": tile_vector(layer.bias).to(own)}


def _factors(layer: QuantLinear, *, smooth_I: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """float32; the first factor reads the input before smoothing."""
    up_OR = torch.zeros(layer.out_features, rank, device=smooth_I.device)
    down_RI = torch.zeros(rank, layer.in_features, device=smooth_I.device)
    own = layer.spec.rank
    if layer.low_rank_up is not None and layer.low_rank_down is not None:
        rows = 1.0 if layer.row_factors is None else layer.row_factors[:, None]
        up_OR[:, :own] = layer.low_rank_up.float() * rows
        down_RI[:own] = layer.low_rank_down.float() / smooth_I
    return up_OR, down_RI


def _convert(layers: Layers, others: dict[str, Tensor], dimensions: dict[str, int]) -> Conversion:
    rank = _rank(layers)
    tensors = dict(others)
    for name, layer in layers.items():
        made = _layer_tensors(layer, rank=rank)
        tensors |= {f"{name}.{key}": value for key, value in made.items()}
    targets: dict[str, Any] = {
        "precision": "int4",
        "group_size": GROUP,
        "rank": rank,
        "targets": list(layers),
    }
    (own, *_) = {layer.dtype for layer in layers.values()}
    config = {
        "quant_method": "nunchaku_lite",
        "compute_dtype": dtype_name(own),
        "svdq_w4a4": targets,
        "awq_w4a16": None,
    }
    return Conversion(tensors=tensors, quantization_config=config)


NUNCHAKU_LITE = Form(
    name="nunchaku-lite",
    library=None,
    how_to_load="diffusers' from_pretrained on an NVIDIA GPU (not Hopper), with kernels installed",
    obstacles=_obstacles,
    convert=_convert,
)
