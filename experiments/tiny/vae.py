"""The small autoencoder that the three tiny pipelines share: 64x64x3 pixels to 8x8x16 latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from evaluation.datasets.shapes import Sample, render
from experiments.tiny.training import TrainingLog, train

LATENT_CHANNELS = 16
_KL_WEIGHT = 1e-4
_OBJECT_WEIGHT = 8.0  # objects cover a tenth of an image, their colours are what is hard
_CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "force_upcast": False,
}


def images_of(samples: list[Sample]) -> torch.Tensor:
    """True images of samples as float NCHW in [-1, 1]."""
    stack = np.stack([render(sample.scene, key=sample.id) for sample in samples])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def build_vae(*, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(**_CONFIG).to(memory_format=torch.channels_last)  # faster on CPUs


def train_vae(
    samples: list[Sample], *, steps: int, batch_size: int, seed: int, work: Path
) -> tuple[AutoencoderKL, TrainingLog]:
    """Trains with weighted |x - y| + (x - y)^2 + 1e-4 KL; `scaling_factor` is one over the std."""
    vae = build_vae(seed=seed)
    images = images_of(samples).mul(127.5).round().to(torch.int8)

    def loss(_: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        x = (images[rows].float() / 127.5).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        weight = 1.0 + _OBJECT_WEIGHT * (x - x[:, :, :1, :1]).abs().amax(1, keepdim=True).clamp(
            max=1
        )
        error = (weight * ((x - y).abs() + (x - y).square())).mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        return error + _KL_WEIGHT * kl

    record = train(
        vae,
        loss=loss,
        name="vae",
        steps=steps,
        batch_size=batch_size,
        learning_rate=2e-3,
        seed=seed,
        work=work,
        weight_decay=0.0,
        decay=0.99,
    )
    with torch.no_grad():
        latents = vae.encode(images[:512].float() / 127.5).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))
    return vae, record


@torch.no_grad()
def encode(vae: AutoencoderKL, samples: list[Sample], *, batch_size: int = 128) -> torch.Tensor:
    """Scaled latents (N, 16, 8, 8) in float16, means of the posterior."""
    parts = []
    for start in range(0, len(samples), batch_size):
        x = images_of(samples[start : start + batch_size])
        parts.append((vae.encode(x).latent_dist.mean * vae.config.scaling_factor).half())
    return torch.cat(parts)
