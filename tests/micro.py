"""Pipelines and an evaluator small enough to be built in a test; random weights, real classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from experiments.tiny import assemble, text
from experiments.tiny.evaluator import model_config, save_evaluator


def parts(*, seed: int = 0) -> dict[str, Any]:
    """Untrained shared parts, as `assemble.build_pipeline` takes them."""
    clip_tokenizer, t5_tokenizer = text.build_clip_tokenizer(), text.build_t5_tokenizer()
    clip = text.build_clip_encoder(clip_tokenizer, seed=seed).eval()
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
        force_upcast=False,
    )
    return {
        "vae": vae.eval(),
        "clip": clip,
        "plain": text.without_projection(clip),
        "t5": text.build_t5_encoder(t5_tokenizer, seed=seed).eval(),
        "clip_tokenizer": clip_tokenizer,
        "t5_tokenizer": t5_tokenizer,
    }


def denoiser(name: str, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if name == "tiny_mmdit":
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=text.T5_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * text.CLIP_WIDTH,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ).eval()
    if name == "tiny_flux":
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=text.T5_WIDTH,
            pooled_projection_dim=text.CLIP_WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval()
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 2),
        cross_attention_dim=2 * text.CLIP_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=text.CLIP_WIDTH + 6 * 32,
        norm_num_groups=4,
    ).eval()


def stable_diffusion(kind: Any, *, channels: int = 16, **more: Any) -> Any:
    """A pipeline of the first Stable Diffusion's family.

    Args:
        channels: that its UNet reads.
        more: parts beside those of text to image, or in their place.
    """
    shared = parts()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text.CLIP_WIDTH,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
    )
    given = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return kind(
        vae=shared["vae"],
        text_encoder=shared["plain"],
        tokenizer=shared["clip_tokenizer"],
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        **{**given, **more},
    )


def save_pipeline(name: str, folder: Path, *, seed: int = 0) -> Path:
    """One of the three families of the tiny models, untrained, in diffusers' format."""
    pipeline = assemble.build_pipeline(name, parts(seed=seed), denoiser(name, seed=seed))
    pipeline.save_pretrained(folder)
    return folder


def save_pixart(folder: Path, *, seed: int = 0) -> Path:
    """A fourth family that the project has no model of: PixArt-Sigma."""
    shared = parts(seed=seed)
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=32,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        cross_attention_dim=32,
        caption_channels=text.T5_WIDTH,
        norm_num_groups=4,
        use_additional_conditions=False,
    ).eval()
    PixArtSigmaPipeline(
        tokenizer=shared["t5_tokenizer"],
        text_encoder=shared["t5"],
        vae=shared["vae"],
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)
    return folder


def save_z_image(folder: Path, *, seed: int = 0) -> Path:
    """A denoiser that takes and returns lists of samples, and calls its timestep `t`."""
    pieces = [*text.byte_alphabet(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(seed)
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
        axes_lens=[512, 64, 64],
    )
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts(seed=seed)["vae"],
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    ).save_pretrained(folder)
    return folder


def save_untrained_evaluator(folder: Path, *, seed: int = 0) -> Path:
    from open_clip.tokenizer import SimpleTokenizer

    from experiments.tiny.evaluator import write_merges

    folder.mkdir(parents=True, exist_ok=True)
    write_merges(folder / "bpe_merges.txt.gz")
    size = SimpleTokenizer(str(folder / "bpe_merges.txt.gz"), context_length=4).vocab_size
    torch.manual_seed(seed)
    save_evaluator(open_clip.CLIP(**model_config(size)), folder)
    return folder
