"""Blocks of real widths for a CPU: two of SD3.5-medium's, and two of SDXL's middle transformer.

Weights are random: speed does not depend on them. Whole models take a CPU minutes a step, and their
blocks are alike, so that a block's ratio is the model's, but for SDXL's convolutions, which no
method here quantizes and which are not in the block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.speed.full_sizes import MODELS, config_of
from experiments.zoo.architectures import from_config

SIDE = 64  # of SD3.5's latents: 512 x 512 pixels, 1,024 image tokens
LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """A network of diffusers, and what it is called with."""

    name: str
    what: str
    build: Callable[[bool], nn.Module]  # of a small one?
    inputs: Callable[[nn.Module, int], dict[str, Any]]  # of it and a seed


def _noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sd3(small: bool) -> nn.Module:
    config = dict(config_of(MODELS["sd35-medium"], small=False))
    config |= {"num_layers": LAYERS, "pos_embed_max_size": SIDE}
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = [0, 1]
    if small:
        config |= {"num_attention_heads": 2, "caption_projection_dim": 2 * 64}
    return from_config(config, device="cpu").float()


def _sd3_inputs(network: Any, seed: int) -> dict[str, Any]:
    config = network.config
    side = SIDE if config.num_attention_heads > 2 else 8
    return {
        "hidden_states": _noise(1, config.in_channels, side, side, seed=seed),
        "encoder_hidden_states": _noise(1, 154, config.joint_attention_dim, seed=seed + 1),
        "pooled_projections": _noise(1, config.pooled_projection_dim, seed=seed + 2),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
    }


def _sdxl(small: bool) -> nn.Module:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    heads = 1 if small else 20
    made: nn.Module = Transformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=heads * 64,
        num_layers=LAYERS,
        cross_attention_dim=2048,
        use_linear_projection=True,
    )
    return made.float()


def _sdxl_inputs(network: Any, seed: int) -> dict[str, Any]:
    side = 32 if network.config.num_attention_heads > 1 else 8
    return {
        "hidden_states": _noise(1, network.config.in_channels, side, side, seed=seed),
        "encoder_hidden_states": _noise(1, 77, 2048, seed=seed + 1),
        "return_dict": False,
    }


BLOCKS: Mapping[str, Block] = {
    block.name: block
    for block in (
        Block(
            name="sd35_medium",
            what="two of its blocks, width 1536, with embeddings and output; 512 x 512 pixels, "
            "1,178 tokens",
            build=_sd3,
            inputs=_sd3_inputs,
        ),
        Block(
            name="sdxl",
            what="two layers of its transformer of width 1280, 1,024 tokens (1024 x 1024 pixels)",
            build=_sdxl,
            inputs=_sdxl_inputs,
        ),
    )
}
