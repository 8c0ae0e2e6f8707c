"""A small Stable Diffusion's weights under the names of its authors' own checkpoints."""

from __future__ import annotations

import re
from typing import Any

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# of a UNet with two blocks each way, one layer a block, and attention in the second
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_layout(pipeline: Any) -> dict[str, torch.Tensor]:
    """All weights of the pipeline in one dict, as a single file has them."""
    named = {
        **{f"model.diffusion_model.{_unet_name(k)}": v for k, v in _tensors(pipeline.unet)},
        **{f"first_stage_model.{_vae_name(k)}": v for k, v in _tensors(pipeline.vae)},
    }
    for name, tensor in _tensors(pipeline.text_encoder):
        inner = name if name.startswith("text_model.") else f"text_model.{name}"
        named[f"cond_stage_model.transformer.{inner}"] = tensor
    return named


def _tensors(module: Any) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.clone().contiguous()) for name, tensor in module.state_dict().items()]


def _unet_name(name: str) -> str:
    here = max((k for k in _UNET if name.startswith(f"{k}.")), key=len)
    inner = name[len(here) + 1 :]
    if "resnets" in here:
        layer, _, rest = inner.partition(".")
        inner = f"{_RESNET[layer]}.{rest}"
    return f"{_UNET[here]}.{inner}"


def _vae_name(name: str) -> str:
    """Of a VAE with two blocks each way."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
