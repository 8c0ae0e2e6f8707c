"""Diffusers' own denoisers at toy size, an input for each, and the graphs that they have."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from segquant.core.plain_linears import linear_layers
from tests.unit.core.helpers import generator, info

WIDTH = 32


def sd3() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=20,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    batches = [
        {
            "hidden_states": torch.randn(2, 4, 4, 4, generator=generator(n)),
            "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator(n + 100)),
            "pooled_projections": torch.randn(2, 20, generator=generator(n + 200)),
            "timestep": 1000 * torch.rand(2, generator=generator(n + 300)),
            "return_dict": False,
        }
        for n in range(4)
    ]
    graph = {}
    for name, linear in linear_layers(model).items():
        out, inp = linear.out_features, linear.in_features
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")):
            graph[name] = info(out, inp, output=(WIDTH,) * (out // WIDTH), inputs=((inp, True),))
        elif "net.2" in name or name.endswith("linear_2"):
            graph[name] = info(out, inp, inputs=((inp, True),))
        elif "to_out" in name or "to_add_out" in name:
            graph[name] = info(out, inp, heads=(16, 16))
    return model.eval(), batches, graph


def flux() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    batches = [
        {
            "hidden_states": torch.randn(1, 4, 8, generator=generator(n)),
            "encoder_hidden_states": torch.randn(1, 3, 24, generator=generator(n + 100)),
            "pooled_projections": torch.randn(1, 20, generator=generator(n + 200)),
            "timestep": torch.rand(1, generator=generator(n + 300)),
            "img_ids": torch.zeros(4, 3),
            "txt_ids": torch.zeros(3, 3),
            "return_dict": False,
        }
        for n in range(4)
    ]
    name = "single_transformer_blocks.0.proj_out"
    found = info(WIDTH, 5 * WIDTH, inputs=((WIDTH, False), (4 * WIDTH, True)))
    return model.eval(), batches, {name: found}


def unet() -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    batches = [
        {
            "sample": torch.randn(2, 4, 8, 8, generator=generator(n)),
            "timestep": torch.tensor(100 * n),
            "encoder_hidden_states": torch.randn(2, 5, 24, generator=generator(n + 100)),
            "return_dict": False,
        }
        for n in range(4)
    ]
    graph = {}
    for name, linear in linear_layers(model).items():
        out, inp = linear.out_features, linear.in_features
        if name.endswith("ff.net.0.proj"):
            graph[name] = info(out, inp, output=(out // 2, out // 2))
        elif "time_emb_proj" in name:
            graph[name] = info(out, inp, inputs=((inp, True),))
    return model.eval(), batches, graph


ALL = {"sd3": sd3, "flux": flux, "unet": unet}
