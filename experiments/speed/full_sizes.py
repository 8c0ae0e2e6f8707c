"""The denoisers that speed is measured on, at 1024 x 1024, and the shapes of their Linears.

Weights are random: speed does not depend on them, and no download is needed. `small` takes the tiny
models of the same classes instead, to run the same code on a CPU.

Legend: M rows of a Linear's input, K its input features, N its output features.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.errors import UserError
from experiments.store.paths import TINY_MODELS
from experiments.zoo.architectures import from_config, load_config
from segquant.core.plain_linears import linear_layers


@dataclass(frozen=True, kw_only=True)
class SpeedModel:
    """One denoiser as a pipeline calls it: batch 2 is classifier-free guidance."""

    name: str
    tiny: str
    batch: int
    text_tokens: int


MODELS = {
    model.name: model
    for model in (
        SpeedModel(name="sd35-medium", tiny="tiny_mmdit", batch=2, text_tokens=333),
        SpeedModel(name="flux.1-dev", tiny="tiny_flux", batch=1, text_tokens=512),
        SpeedModel(name="sdxl", tiny="tiny_unet", batch=2, text_tokens=77),
    )
}
LATENT_SIDE = 128
SMALL_SIDE, SMALL_TOKENS = 8, 24


def find_models(names: list[str]) -> list[SpeedModel]:
    """The models by name; all of them for no names."""
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise UserError(f"unknown model {unknown[0]!r}; choose from {', '.join(MODELS)}")
    return [MODELS[name] for name in names] if names else list(MODELS.values())


def config_of(model: SpeedModel, *, small: bool) -> dict[str, Any]:
    if not small:
        return load_config(model.name)
    folder = TINY_MODELS / model.tiny
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def build(
    model: SpeedModel, *, small: bool, device: str, dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """The denoiser with random weights (none on the meta device)."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return from_config(config_of(model, small=small), device=device).to(dtype)
    finally:
        torch.set_default_dtype(before)


def inputs(
    denoiser: Any,
    model: SpeedModel,
    *,
    small: bool,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Arguments of one step."""
    config = denoiser.config
    side, text = (SMALL_SIDE, SMALL_TOKENS) if small else (LATENT_SIDE, model.text_tokens)
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(model.batch, *shape, device=device, dtype=dtype, generator=generator)

    step = torch.full((model.batch,), 500.0, device=device)
    if "FluxTransformer" in type(denoiser).__name__:
        tokens = (side // 2) ** 2
        made = {
            "hidden_states": noise(tokens, config.in_channels),
            "encoder_hidden_states": noise(text, config.joint_attention_dim),
            "pooled_projections": noise(config.pooled_projection_dim),
            "timestep": step.to(dtype) / 1000,
            "img_ids": torch.zeros(tokens, 3, device=device),
            "txt_ids": torch.zeros(text, 3, device=device),
        }
        return made | ({"guidance": step * 0 + 3.5} if config.guidance_embeds else {})
    if "SD3" in type(denoiser).__name__:
        return {
            "hidden_states": noise(config.in_channels, side, side),
            "encoder_hidden_states": noise(text, config.joint_attention_dim),
            "pooled_projections": noise(config.pooled_projection_dim),
            "timestep": step,
        }
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": noise(config.in_channels, side, side),
        "timestep": step,
        "encoder_hidden_states": noise(text, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": noise(width), "time_ids": noise(6)},
    }


_POST_ACTIVATION = (
    (re.compile(r"\.net\.2$"), "feed-forward"),
    (re.compile(r"single_transformer_blocks\.\d+\.proj_out$"), "part of it"),
    (re.compile(r"norm\w*\.linear$|time_emb_proj$|linear_2$|embedding\.linear_2$"), "SiLU"),
)


def post_activation(layer: str) -> str:
    """What kind of activation a layer of these models reads; empty for none."""
    return next((kind for pattern, kind in _POST_ACTIVATION if pattern.search(layer)), "")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Linears of one size in one model."""

    model: str
    rows: int
    in_features: int
    out_features: int
    after: str  # post_activation
    count: int
    example: str  # one layer's name

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.in_features}x{self.out_features}"

    @property
    def flop(self) -> float:
        return 2.0 * self.rows * self.in_features * self.out_features


def shapes(model: SpeedModel, *, small: bool) -> list[Shape]:
    """Every shape of a model with its number, by a forward on the meta device."""
    denoiser = build(model, small=small, device="meta")
    counts: Counter[tuple[int, int, int, str]] = Counter()
    examples: dict[tuple[int, int, int, str], str] = {}
    for name, linear in linear_layers(denoiser).items():

        def see(module: nn.Linear, args: tuple[Any, ...], name: str = name) -> None:
            rows = args[0].numel() // module.in_features
            key = (rows, module.in_features, module.out_features, post_activation(name))
            counts[key] += 1
            examples.setdefault(key, name)

        linear.register_forward_pre_hook(see)
    with torch.no_grad():
        denoiser(**inputs(denoiser, model, small=small, device="meta"))
    return [
        Shape(
            model=model.name,
            rows=rows,
            in_features=k,
            out_features=n,
            after=after,
            count=count,
            example=examples[rows, k, n, after],
        )
        for (rows, k, n, after), count in sorted(counts.items(), key=lambda item: -item[1])
    ]
