"""Small pipelines with several denoisers; random weights, real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    KandinskyV22CombinedPipeline,
    PriorTransformer,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from experiments.tiny import assemble, text
from tests import micro


def controlnet(*, seed: int = 1) -> SD3ControlNetModel:
    """As a trained one: what is made of zeros has values too."""
    torch.manual_seed(seed)
    made = SD3ControlNetModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.T5_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * text.CLIP_WIDTH,
        out_channels=16,
        pos_embed_max_size=16,
        extra_conditioning_channels=0,
    )
    for parameter in made.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.2)
    return made.eval()


def save_sd3_controlnet(folder: Path) -> Path:
    """A transformer, and a ControlNet before each of its calls."""
    plain: Any = assemble.build_pipeline("tiny_mmdit", micro.parts(), micro.denoiser("tiny_mmdit"))
    pipeline = StableDiffusion3ControlNetPipeline(**plain.components, controlnet=controlnet())
    pipeline.save_pretrained(folder)
    return folder


def save_kandinsky(folder: Path) -> Path:
    """A prior and a UNet, each in a pipeline of its own within the combined one."""
    shared = micro.parts()
    width = text.CLIP_WIDTH
    torch.manual_seed(0)
    images = CLIPVisionConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=width,
        num_layers=1,
        num_embeddings=shared["clip_tokenizer"].model_max_length,
    )
    nn.init.ones_(prior.clip_std)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 32),
        encoder_hid_dim=width,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        layers_per_block=1,
        norm_num_groups=4,
    )
    movq = VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    KandinskyV22CombinedPipeline(
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        movq=movq.eval(),
        prior_prior=prior.eval(),
        prior_image_encoder=CLIPVisionModelWithProjection(images).eval(),
        prior_text_encoder=shared["clip"],
        prior_tokenizer=shared["clip_tokenizer"],
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        prior_image_processor=CLIPImageProcessor(),
    ).save_pretrained(folder)
    return folder
