"""The three tiny denoisers: small configs of diffusers' own classes, and how each is trained.

SD3 and FLUX learn rectified flow (Esser et al. 2024, arXiv:2403.03206): x_s = (1 - s) x_0 + s e,
target e - x_0, s logit-normal. SDXL learns the velocity (Salimans and Ho 2022, arXiv:2202.00512)
of a variance-preserving diffusion (Ho et al. 2020, arXiv:2006.11239). One prompt in ten is replaced
by the empty one, for guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import nn

from experiments.tiny.text import CLIP_WIDTH, MAX_TOKENS, T5_WIDTH
from experiments.tiny.training import TrainingLog, train
from experiments.tiny.vae import LATENT_CHANNELS

LATENT_SIZE = 8
_HEADS, _HEAD_DIM = 5, 32
_DROP_PROMPT = 0.1
_TIME_IDS = (64, 64, 0, 0, 64, 64)  # SDXL's original size, crop, target size


@dataclass(kw_only=True)
class Batch:
    """Latents x0 (B, 16, 8, 8) and what the text encoders said of the prompts."""

    x0: torch.Tensor
    clip: torch.Tensor  # (B, 24, 64) states of the last but one layer
    projected: torch.Tensor  # (B, 64) pooled projection
    plain: torch.Tensor  # (B, 64) pooled state without projection
    t5: torch.Tensor  # (B, 24, 128)


@dataclass(kw_only=True)
class TrainingData:
    """Everything precomputed for a list of samples; the texts' last row is the empty prompt."""

    latents: torch.Tensor
    clip: torch.Tensor
    projected: torch.Tensor
    plain: torch.Tensor
    t5: torch.Tensor

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        rows = torch.randint(len(self.latents), (size,), generator=generator)
        drop = torch.rand(size, generator=generator) < _DROP_PROMPT
        texts = torch.where(drop, len(self.latents), rows)
        return Batch(
            x0=self.latents[rows].float(),
            clip=self.clip[texts].float(),
            projected=self.projected[texts].float(),
            plain=self.plain[texts].float(),
            t5=self.t5[texts].float(),
        )


def build_mmdit() -> SD3Transformer2DModel:
    """SD3.5's ways: qk RMSNorm, dual attention first, last block with context pre-only."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=_HEAD_DIM,
        num_attention_heads=_HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=_HEADS * _HEAD_DIM,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=2 * LATENT_SIZE,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def build_flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=_HEAD_DIM,
        num_attention_heads=_HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def build_unet() -> UNet2DConditionModel:
    """SDXL's ways: no attention at the first level, text and size embedded beside the time."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(96, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(3, 4),
        cross_attention_dim=2 * CLIP_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=CLIP_WIDTH + 6 * 32,
        norm_num_groups=16,
    )


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def euler_scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**_diffusion_settings(), timestep_spacing="trailing")


def _diffusion_settings() -> dict[str, Any]:
    """DDPM's own schedule and the velocity as target, where SDXL has another and the noise.

    At the last step SDXL's schedule still shows sqrt(alpha_bar) = 0.068 of the image, from which a
    denoiser reads the mean of 1024 latents; pure noise then reads as gray. DDPM's leaves 0.006,
    where an error in the noise would be multiplied by 157 and one in the velocity is not.
    """
    return {
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
    }


def _flow(batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    noise = torch.randn(batch.x0.shape, generator=generator)
    sigma = torch.sigmoid(torch.randn(len(noise), generator=generator) * 1.2)
    mix = sigma.view(-1, 1, 1, 1)
    return (1.0 - mix) * batch.x0 + mix * noise, noise - batch.x0, sigma


def mmdit_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    x, target, sigma = _flow(batch, generator)
    states = torch.cat([batch.clip, batch.clip], dim=-1)
    predicted = model(
        hidden_states=x,
        timestep=sigma * 1000.0,
        encoder_hidden_states=torch.cat([states, batch.t5], dim=1),
        pooled_projections=torch.cat([batch.projected, batch.projected], dim=-1),
        return_dict=False,
    )[0]
    return F.mse_loss(predicted, target)


def flux_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    x, target, sigma = _flow(batch, generator)
    count, channels, height, width = x.shape

    def pack(z: torch.Tensor) -> torch.Tensor:
        packed = FluxPipeline._pack_latents(z, count, channels, height, width)
        assert isinstance(packed, torch.Tensor)
        return packed

    ids = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", x.dtype)
    predicted = model(
        hidden_states=pack(x),
        timestep=sigma,
        pooled_projections=batch.plain,
        encoder_hidden_states=batch.t5,
        txt_ids=torch.zeros(MAX_TOKENS, 3),
        img_ids=ids,
        guidance=None,
        return_dict=False,
    )[0]
    return F.mse_loss(predicted, pack(target))


def unet_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    schedule = DDPMScheduler(**_diffusion_settings())
    noise = torch.randn(batch.x0.shape, generator=generator)
    times = torch.randint(1000, (len(noise),), generator=generator)
    predicted = model(
        schedule.add_noise(batch.x0, noise, times),
        times,
        encoder_hidden_states=torch.cat([batch.clip, batch.clip], dim=-1),
        added_cond_kwargs={
            "text_embeds": batch.projected,
            "time_ids": torch.tensor(_TIME_IDS, dtype=torch.float32).expand(len(noise), -1),
        },
        return_dict=False,
    )[0]
    return F.mse_loss(predicted, schedule.get_velocity(batch.x0, noise, times))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one denoiser is made."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch, torch.Generator], torch.Tensor]
    steps: int
    batch_size: int
    learning_rate: float


RECIPES: dict[str, Recipe] = {
    "tiny_mmdit": Recipe(
        build=build_mmdit, loss=mmdit_loss, steps=4000, batch_size=48, learning_rate=1e-3
    ),
    "tiny_flux": Recipe(
        build=build_flux, loss=flux_loss, steps=3000, batch_size=48, learning_rate=1e-3
    ),
    "tiny_unet": Recipe(
        build=build_unet, loss=unet_loss, steps=3000, batch_size=48, learning_rate=1e-3
    ),
}


def train_denoiser(
    name: str, data: TrainingData, *, seed: int, work: Path, steps: int | None = None
) -> tuple[nn.Module, TrainingLog]:
    """Trains one of `RECIPES` on precomputed data."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    model = recipe.build()

    def loss(_: int, generator: torch.Generator) -> torch.Tensor:
        return recipe.loss(model, data.batch(recipe.batch_size, generator), generator)

    record = train(
        model,
        loss=loss,
        name=name,
        steps=steps or recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        seed=seed,
        work=work,
        decay=0.999,
    )
    return model, record
