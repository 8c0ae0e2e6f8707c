"""What each real model of `conf/model` is made of: configs of all its parts, no weights.

The configs in `configs/` (denoisers) and `configs/parts/` (text encoders, VAEs, schedulers) are
transcribed from those that lie beside the published weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from experiments.zoo.architectures import load_config

_PARTS = Path(__file__).parent / "configs" / "parts"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A pipeline's class, and by the name of each part the config it has."""

    pipeline: str
    denoisers: Mapping[str, str]  # of the zoo; the first one is the pipeline's own
    encoders: Mapping[str, str]  # of texts; each has a tokenizer
    vae: str
    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline itself

    @property
    def controlnet(self) -> str | None:
        """The ControlNet's config; it lies apart from the pipeline's folder."""
        return self.denoisers.get("controlnet")


_SD3_TEXTS = {
    "text_encoder": "clip-l-projected",
    "text_encoder_2": "clip-bigg",
    "text_encoder_3": "t5-xxl",
}
_SDXL_TEXTS = {"text_encoder": "clip-l", "text_encoder_2": "clip-bigg"}
_FLUX_TEXTS = {"text_encoder": "clip-l", "text_encoder_2": "t5-xxl"}


def _sd3(transformer: str, *, controlnet: str | None = None) -> Published:
    more = {} if controlnet is None else {"controlnet": controlnet}
    return Published(
        pipeline="StableDiffusion3ControlNetPipeline" if more else "StableDiffusion3Pipeline",
        denoisers={"transformer": transformer, **more},
        encoders=_SD3_TEXTS,
        vae="vae-sd3",
        scheduler="flow-shift-3",
    )


def _flux(transformer: str, *, scheduler: str, controlnet: str | None = None) -> Published:
    more = {} if controlnet is None else {"controlnet": controlnet}
    return Published(
        pipeline="FluxControlNetPipeline" if more else "FluxPipeline",
        denoisers={"transformer": transformer, **more},
        encoders=_FLUX_TEXTS,
        vae="vae-flux",
        scheduler=scheduler,
    )


def _sdxl(*, scheduler: str, controlnet: str | None = None) -> Published:
    more = {} if controlnet is None else {"controlnet": controlnet}
    kind = "StableDiffusionXLControlNetPipeline" if more else "StableDiffusionXLPipeline"
    return Published(
        pipeline=kind,
        denoisers={"unet": "sdxl", **more},
        encoders=_SDXL_TEXTS,
        vae="vae-sdxl",
        scheduler=scheduler,
        settings={"force_zeros_for_empty_prompt": True, "add_watermarker": False},
    )


# by the name of the yaml in conf/model
PUBLISHED: dict[str, Published] = {
    "sd3_medium": _sd3("sd3-medium"),
    "sd35_medium": _sd3("sd35-medium"),
    "sd35_large": _sd3("sd35-large"),
    "sd3_canny": _sd3("sd3-medium", controlnet="sd3-controlnet-canny"),
    "flux1_dev": _flux("flux.1-dev", scheduler="flow-flux"),
    "flux1_schnell": _flux("flux.1-schnell", scheduler="flow-schnell"),
    "krea": _flux("flux.1-dev", scheduler="flow-flux"),
    "flux1_canny": _flux("flux.1-dev", scheduler="flow-flux", controlnet="flux-controlnet-canny"),
    "sdxl": _sdxl(scheduler="euler-sdxl"),
    "sdxl_turbo": _sdxl(scheduler="euler-ancestral-turbo"),
    "sdxl_canny": _sdxl(scheduler="euler-sdxl", controlnet="sdxl-controlnet"),
    "sd15": Published(
        pipeline="StableDiffusionPipeline",
        denoisers={"unet": "sd15"},
        encoders={"text_encoder": "clip-l"},
        vae="vae-sd15",
        scheduler="pndm-sd15",
        settings={"requires_safety_checker": False},  # a run leaves the checker out
    ),
    "pixart_sigma": Published(
        pipeline="PixArtSigmaPipeline",
        denoisers={"transformer": "pixart-sigma"},
        encoders={"text_encoder": "t5-xxl"},
        vae="vae-sdxl",
        scheduler="dpm-pixart",
    ),
    "dit_xl2": Published(
        pipeline="DiTPipeline",
        denoisers={"transformer": "dit-xl-2"},
        encoders={},
        vae="vae-dit",
        scheduler="ddim-dit",
    ),
    "sana": Published(
        pipeline="SanaPipeline",
        denoisers={"transformer": "sana-1.6b"},
        encoders={"text_encoder": "gemma-2-2b"},
        vae="dc-ae-f32c32",
        scheduler="dpm-sana",
    ),
    "flux2_klein": Published(
        pipeline="Flux2KleinPipeline",
        denoisers={"transformer": "flux.2-klein-4b"},
        encoders={"text_encoder": "qwen3-4b-lm"},
        vae="vae-flux2",
        scheduler="flow-flux",
        settings={"is_distilled": True},
    ),
    "flux2_dev": Published(
        pipeline="Flux2Pipeline",
        denoisers={"transformer": "flux.2-dev"},
        encoders={"text_encoder": "mistral-small-3.2-24b"},
        vae="vae-flux2",
        scheduler="flow-flux",
    ),
    "zimage_turbo": Published(
        pipeline="ZImagePipeline",
        denoisers={"transformer": "z-image"},
        encoders={"text_encoder": "qwen3-4b"},
        vae="vae-flux",
        scheduler="flow-shift-3",
    ),
    "qwen_image": Published(
        pipeline="QwenImagePipeline",
        denoisers={"transformer": "qwen-image"},
        encoders={"text_encoder": "qwen2.5-vl-7b"},
        vae="vae-qwen-image",
        scheduler="flow-qwen-image",
    ),
}


def models_with(architecture: str) -> list[str]:
    """The yamls of `conf/model` that have such a denoiser."""
    return [name for name, made in PUBLISHED.items() if architecture in made.denoisers.values()]


def part_config(name: str) -> dict[str, Any]:
    """The published config of a text encoder, a VAE or a scheduler."""
    config: dict[str, Any] = json.loads((_PARTS / f"{name}.json").read_text())
    return config


def network(config: Mapping[str, Any], *, device: str = "meta") -> nn.Module:
    """A network of diffusers or transformers from its config, in evaluation mode."""
    settings = dict(config)
    name = settings.pop("_class_name")
    with torch.device(device):
        if hasattr(diffusers, name):
            made: nn.Module = getattr(diffusers, name).from_config(settings)
        else:
            kind = getattr(transformers, name)
            made = kind(kind.config_class(**settings))
    return made.eval()


def networks(published: Published) -> dict[str, dict[str, Any]]:
    """By the part's name the config of every network that a run loads."""
    denoisers = {name: load_config(config) for name, config in published.denoisers.items()}
    encoders = {name: part_config(config) for name, config in published.encoders.items()}
    return {**denoisers, **encoders, "vae": part_config(published.vae)}


def weights_bytes(published: Published, *, bytes_per_value: int = 2) -> int:
    """Bytes of all tensors of a model's parts, from its configs; 2 for 16-bit files."""
    texts = (json.dumps(config, sort_keys=True) for config in networks(published).values())
    return bytes_per_value * sum(_values(text) for text in texts)


def parameter_count(config: Mapping[str, Any]) -> int:
    """Of a network's parameters, those of tied tensors once."""
    return _parameters(json.dumps(config, sort_keys=True))


@functools.cache
def _parameters(config: str) -> int:
    return sum(parameter.numel() for parameter in network(json.loads(config)).parameters())


@functools.cache
def _values(config: str) -> int:
    """Values in a network's files, those of tied tensors once."""
    module = network(json.loads(config))
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = (value for name, value in module.state_dict().items() if name not in every)
    return sum(value.numel() for value in (*module.parameters(), *buffers))
