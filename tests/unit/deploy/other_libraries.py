"""Denoisers in other libraries' formats: made here, loaded by those libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

import segquant.diffusers as deployed
from experiments.config.compose import build, compose_config
from segquant.core.schemes import Bits
from segquant.deploy.other_formats.form_interface import quantized_layers
from segquant.graph import analyze
from tests.unit.core import denoisers
from tests.unit.core.helpers import calibrate, generator


def method_and_bits(method: str, bits: str, *settings: str) -> tuple[Any, Bits]:
    config = build(
        compose_config([f"method={method}", f"bits={bits}", *settings]), method_name=method
    )
    return config.method, config.bits


def made(
    method: str,
    bits: str,
    *settings: str,
    model: str = "sd3",
    dtype: torch.dtype = torch.float32,
    analyzed: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """A quantized denoiser as diffusers knows it, and inputs of it that no calibration saw.

    Args:
        analyzed: with the graph that the analysis finds, in which smoothing can be folded.
    """
    denoiser, batches, graph = wide_sd3() if model == "wide" else denoisers.ALL[model]()
    graph = analyze(denoiser, batches[0]) if analyzed else graph
    denoiser = denoiser.to(dtype)
    *seen, held_out = [_cast(batch, dtype) for batch in batches]
    recipe, asked = method_and_bits(method, bits, *settings)
    calibration = calibrate(denoiser, seen, graph=graph)
    recipe.quantize(denoiser, calibration=calibration, bits=asked)
    return deployed.as_diffusers(denoiser), held_out


def wide_sd3() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """One whose Linears all have multiples of 128 features."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=4,
        patch_size=4,
        in_channels=8,
        out_channels=8,
        num_layers=1,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=4,
    )
    batches = [
        {
            "hidden_states": torch.randn(2, 8, 16, 16, generator=generator(n)),
            "encoder_hidden_states": torch.randn(2, 5, 128, generator=generator(n + 100)),
            "pooled_projections": torch.randn(2, 128, generator=generator(n + 200)),
            "timestep": 1000 * torch.rand(2, generator=generator(n + 300)),
            "return_dict": False,
        }
        for n in range(3)
    ]
    return model.eval(), batches, {}


def _cast(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if torch.is_tensor(v) and v.dim() > 1 else v for k, v in batch.items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def layer_inputs(denoiser: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What each quantized layer reads in one call."""
    seen: dict[str, Tensor] = {}

    def take(name: str) -> Any:
        return lambda module, args: seen.__setitem__(name, args[0])

    layers = quantized_layers(denoiser)
    hooks = [layer.register_forward_pre_hook(take(name)) for name, layer in layers.items()]
    with torch.no_grad():
        denoiser(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def layer_differences(
    denoiser: nn.Module, loaded: nn.Module, inputs: dict[str, Any]
) -> dict[str, float]:
    """Of each quantized layer's output on what it reads here, relative."""
    seen = layer_inputs(denoiser, inputs)
    with torch.no_grad():
        return {
            name: relative(loaded.get_submodule(name)(x), denoiser.get_submodule(name)(x))
            for name, x in seen.items()
        }
