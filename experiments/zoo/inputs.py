"""Small inputs for every denoiser class of the zoo, enough to run its forward once.

The contents do not matter to the graph analysis, except those of masks and ids.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Any]
_TEXT_TOKENS = 6


class _Maker:
    """Makes tensors of the denoiser's dtype; `side` is the latents' side, `text` the tokens."""

    def __init__(self, denoiser: nn.Module, *, batch: int, scale: int) -> None:
        floats = (p.dtype for p in denoiser.parameters() if p.is_floating_point())
        self.dtype = next(floats, torch.float32)
        self.batch = batch
        self.side = 8 * scale
        self.text = _TEXT_TOKENS * scale

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, dtype=self.dtype)

    def steps(self) -> Tensor:
        return torch.full((self.batch,), 500, dtype=torch.int64)

    def float_steps(self) -> Tensor:
        return torch.full((self.batch,), 0.5, dtype=self.dtype)

    def mask(self, length: int, *, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.ones(self.batch, length, dtype=dtype)


def example_inputs(denoiser: nn.Module, *, batch: int = 2, scale: int = 1) -> Inputs:
    """Keyword arguments of the denoiser's forward; `scale` multiplies the sizes."""
    name = type(denoiser).__name__
    if name not in _MAKERS:
        raise ValueError(
            f"no example inputs are known for {name}, only for {', '.join(sorted(_MAKERS))}; "
            "capture them from one real call with capture_example_inputs"
        )
    return _MAKERS[name](_Maker(denoiser, batch=batch, scale=scale), denoiser.config)


def _sd3(make: _Maker, config: Any) -> Inputs:
    return {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "encoder_hidden_states": make.zeros(make.text, config.joint_attention_dim),
        "pooled_projections": make.zeros(config.pooled_projection_dim),
        "timestep": make.steps(),
    }


def _sd3_controlnet(make: _Maker, config: Any) -> Inputs:
    extra = getattr(config, "extra_conditioning_channels", 0) or 0
    condition = make.zeros(config.in_channels + extra, make.side, make.side)
    return {**_sd3(make, config), "controlnet_cond": condition}


def _flux(make: _Maker, config: Any) -> Inputs:
    tokens = (make.side // 2) ** 2
    inputs = {
        "hidden_states": make.zeros(tokens, config.in_channels),
        "encoder_hidden_states": make.zeros(make.text, config.joint_attention_dim),
        "pooled_projections": make.zeros(config.pooled_projection_dim),
        "timestep": make.float_steps(),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(make.text, 3),
    }
    return inputs | ({"guidance": make.float_steps()} if config.guidance_embeds else {})


def _flux_controlnet(make: _Maker, config: Any) -> Inputs:
    inputs = _flux(make, config)
    inputs["controlnet_cond"] = torch.zeros_like(inputs["hidden_states"])
    if getattr(config, "num_mode", None):
        inputs["controlnet_mode"] = torch.zeros(make.batch, 1, dtype=torch.int64)
    return inputs


def _unet(make: _Maker, config: Any) -> Inputs:
    inputs: Inputs = {
        "sample": make.zeros(config.in_channels, make.side, make.side),
        "timestep": make.steps(),
        "encoder_hidden_states": make.zeros(make.text, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditions = {"text_embeds": make.zeros(width), "time_ids": make.zeros(6)}
        inputs["added_cond_kwargs"] = conditions
    return inputs


def _controlnet(make: _Maker, config: Any) -> Inputs:
    side = make.side * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    condition = make.zeros(config.conditioning_channels, side, side)
    return {**_unet(make, config), "controlnet_cond": condition}


def _pixart(make: _Maker, config: Any) -> Inputs:
    return {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "encoder_hidden_states": make.zeros(make.text, config.caption_channels),
        "timestep": make.steps(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": make.mask(make.text),
    }


def _dit(make: _Maker, config: Any) -> Inputs:
    return {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "timestep": make.steps(),
        "class_labels": torch.zeros(make.batch, dtype=torch.int64),
    }


def _sana(make: _Maker, config: Any) -> Inputs:
    inputs: Inputs = {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "encoder_hidden_states": make.zeros(make.text, config.caption_channels),
        "timestep": make.steps(),
        "encoder_attention_mask": make.mask(make.text),
    }
    return inputs | ({"guidance": make.float_steps()} if config.guidance_embeds else {})


def _hunyuan(make: _Maker, config: Any) -> Inputs:
    rope = torch.zeros((make.side // config.patch_size) ** 2, config.attention_head_dim)
    return {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "timestep": make.float_steps(),
        "encoder_hidden_states": make.zeros(config.text_len, config.cross_attention_dim),
        "text_embedding_mask": make.mask(config.text_len),
        "encoder_hidden_states_t5": make.zeros(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": make.mask(config.text_len_t5),
        "image_meta_size": make.zeros(6),
        "style": torch.zeros(make.batch, dtype=torch.int64),
        "image_rotary_emb": (rope, rope.clone()),
    }


def _lumina2(make: _Maker, config: Any) -> Inputs:
    return {
        "hidden_states": make.zeros(config.in_channels, make.side, make.side),
        "timestep": make.float_steps(),
        "encoder_hidden_states": make.zeros(make.text, config.cap_feat_dim),
        "encoder_attention_mask": make.mask(make.text, dtype=torch.bool),
    }


def _qwen(make: _Maker, config: Any) -> Inputs:
    side = make.side // 2
    return {
        "hidden_states": make.zeros(side * side, config.in_channels),
        "encoder_hidden_states": make.zeros(make.text, config.joint_attention_dim),
        "encoder_hidden_states_mask": make.mask(make.text),
        "timestep": make.float_steps(),
        "img_shapes": [[(1, side, side)]] * make.batch,
    }


def _wan(make: _Maker, config: Any) -> Inputs:
    inputs: Inputs = {
        "hidden_states": make.zeros(config.in_channels, 2, make.side, make.side),
        "timestep": make.steps(),
        "encoder_hidden_states": make.zeros(make.text, config.text_dim),
    }
    if getattr(config, "image_dim", None):
        # The image branch cuts the context at a fixed 512 text tokens.
        inputs["encoder_hidden_states"] = make.zeros(512, config.text_dim)
        inputs["encoder_hidden_states_image"] = make.zeros(make.text, config.image_dim)
    return inputs


def _cogvideox(make: _Maker, config: Any) -> Inputs:
    frames = 2
    side = make.side // config.patch_size
    per_frame = config.patch_size_t or 1
    rope = torch.zeros(frames // per_frame * side * side, config.attention_head_dim)
    inputs: Inputs = {
        "hidden_states": make.zeros(frames, config.in_channels, make.side, make.side),
        "encoder_hidden_states": make.zeros(make.text, config.text_embed_dim),
        "timestep": make.steps(),
    }
    if config.use_rotary_positional_embeddings:
        inputs["image_rotary_emb"] = (rope, rope.clone())
    else:
        length = config.max_text_seq_length
        side = config.sample_height
        inputs["encoder_hidden_states"] = make.zeros(length, config.text_embed_dim)
    return inputs


def _ltx(make: _Maker, config: Any) -> Inputs:
    frames, side = 2, make.side // 2
    return {
        "hidden_states": make.zeros(frames * side * side, config.in_channels),
        "encoder_hidden_states": make.zeros(make.text, config.caption_channels),
        "timestep": make.steps(),
        "encoder_attention_mask": make.mask(make.text),
        "num_frames": frames,
        "height": side,
        "width": side,
    }


_MAKERS: dict[str, Callable[[_Maker, Any], Inputs]] = {
    "SD3Transformer2DModel": _sd3,
    "SD3ControlNetModel": _sd3_controlnet,
    "FluxTransformer2DModel": _flux,
    "FluxControlNetModel": _flux_controlnet,
    "UNet2DConditionModel": _unet,
    "ControlNetModel": _controlnet,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
    "SanaTransformer2DModel": _sana,
    "HunyuanDiT2DModel": _hunyuan,
    "Lumina2Transformer2DModel": _lumina2,
    "QwenImageTransformer2DModel": _qwen,
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "LTXVideoTransformer3DModel": _ltx,
}
