"""Configs of the zoo with few layers and small widths, everything else as published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from experiments.zoo.twin_texts import CLIP_WIDTH, WIDTH

Config = Mapping[str, Any]

_HEADS, _HEAD = 2, 16
_INNER = _HEADS * _HEAD
_ROPE = [4, 6, 6]  # of each axis; their sum is a head's width
_LATENTS = 8  # side of the latents that a default size makes
_GROUPS = 4


def small(config: Config) -> dict[str, Any]:
    """A denoiser's or a VAE's config made small; it reads the states of the small encoders."""
    return {**config, **_SMALL[config["_class_name"]](config)}


def _sd3(config: Config) -> dict[str, Any]:
    layers = 2
    dual = [block for block in config.get("dual_attention_layers", ()) if block < layers - 1]
    return {
        "sample_size": _LATENTS,
        "num_layers": layers,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": _INNER,
        "pooled_projection_dim": 2 * CLIP_WIDTH,
        "pos_embed_max_size": _LATENTS,
        "dual_attention_layers": dual,
    }


def _sd3_controlnet(config: Config) -> dict[str, Any]:
    return {**_sd3(config), "num_layers": 1, "dual_attention_layers": []}


def _flux(config: Config) -> dict[str, Any]:
    return {
        "num_layers": 1,
        "num_single_layers": min(1, config["num_single_layers"]),
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": CLIP_WIDTH,
        "axes_dims_rope": _ROPE,
    }


def _flux2(config: Config) -> dict[str, Any]:
    return {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
        "joint_attention_dim": 3 * WIDTH,  # three layers' states side by side
        "axes_dims_rope": [4, 4, 4, 4],
    }


def _unet(config: Config) -> dict[str, Any]:
    blocks = len(config["block_out_channels"])
    per_block = config.get("transformer_layers_per_block", 1)
    heads = config["attention_head_dim"]
    changes = {
        "block_out_channels": [16, *[32] * (blocks - 1)],
        "layers_per_block": 1,
        "norm_num_groups": _GROUPS,
        "attention_head_dim": 2 if isinstance(heads, int) else [1, *[2] * (blocks - 1)],
        "cross_attention_dim": CLIP_WIDTH,
    }
    if isinstance(per_block, list):
        changes["transformer_layers_per_block"] = [1] * blocks
    if config.get("addition_embed_type") == "text_time":
        width = 8
        changes["cross_attention_dim"] = 2 * CLIP_WIDTH
        changes["addition_time_embed_dim"] = width
        changes["projection_class_embeddings_input_dim"] = CLIP_WIDTH + 6 * width
    if "sample_size" in config:
        changes["sample_size"] = _LATENTS
    return changes


def _unet_controlnet(config: Config) -> dict[str, Any]:
    return {**_unet(config), "conditioning_embedding_out_channels": [4, 4, 8, 8]}


def _pixart(config: Config) -> dict[str, Any]:
    return {**_dit(config), "cross_attention_dim": _INNER, "caption_channels": WIDTH}


def _dit(config: Config) -> dict[str, Any]:
    return {
        "sample_size": _LATENTS,
        "num_layers": 2,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
    }


def _sana(config: Config) -> dict[str, Any]:
    return {
        "sample_size": 2,
        "num_layers": 2,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
        "num_cross_attention_heads": _HEADS,
        "cross_attention_head_dim": _HEAD,
        "cross_attention_dim": _INNER,
        "caption_channels": WIDTH,
    }


def _z_image(config: Config) -> dict[str, Any]:
    return {
        "dim": _INNER,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": _HEADS,
        "n_kv_heads": _HEADS,
        "cap_feat_dim": WIDTH,
        "axes_dims": _ROPE,
    }


def _qwen(config: Config) -> dict[str, Any]:
    return {
        "num_layers": 1,
        "num_attention_heads": _HEADS,
        "attention_head_dim": _HEAD,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": _ROPE,
    }


def _vae(config: Config) -> dict[str, Any]:
    return {"block_out_channels": [4, 4, 8, 8], "layers_per_block": 1, "norm_num_groups": _GROUPS}


def _vae_qwen(config: Config) -> dict[str, Any]:
    return {"base_dim": 4, "num_res_blocks": 1}


def _vae_sana(config: Config) -> dict[str, Any]:
    blocks = len(config["encoder_block_out_channels"])
    changes: dict[str, Any] = {"attention_head_dim": 8}
    # The innermost ones are averaged or repeated to make the latent's channels.
    inner = [config["latent_channels"]] * 2
    for side in ("encoder", "decoder"):
        changes[f"{side}_block_out_channels"] = [*[8] * (blocks - len(inner)), *inner]
        changes[f"{side}_layers_per_block"] = [1] * blocks
    return changes


_SMALL: dict[str, Callable[[Config], dict[str, Any]]] = {
    "SD3Transformer2DModel": _sd3,
    "SD3ControlNetModel": _sd3_controlnet,
    "FluxTransformer2DModel": _flux,
    "FluxControlNetModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "UNet2DConditionModel": _unet,
    "ControlNetModel": _unet_controlnet,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
    "SanaTransformer2DModel": _sana,
    "ZImageTransformer2DModel": _z_image,
    "QwenImageTransformer2DModel": _qwen,
    "AutoencoderKL": _vae,
    "AutoencoderKLFlux2": _vae,
    "AutoencoderKLQwenImage": _vae_qwen,
    "AutoencoderDC": _vae_sana,
}
