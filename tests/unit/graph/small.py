"""Small denoisers of real diffusers classes, with weights."""

from collections.abc import Callable

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn


def sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=40,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=40,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def sdxl() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
        use_linear_projection=True,
    )


SMALL: dict[str, Callable[[], nn.Module]] = {"sd3": sd3, "flux": flux, "sdxl": sdxl}


def state(module: nn.Module) -> dict[str, object]:
    """What must be as before: tensors by identity and version, modes, hooks."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found: dict[str, object] = {
        name: (id(tensor), tensor._version, tensor.requires_grad, float(tensor.float().sum()))
        for name, tensor in tensors.items()
    }
    for name, child in module.named_modules():
        hooks = len(child._forward_hooks) + len(child._forward_pre_hooks)
        found[f"{name} mode"] = (child.training, hooks, type(child))
    return found
