"""Sampling: prompts to images, in batches that a killed run takes up again.

Each prompt's noise comes from a CPU generator seeded by its id, so that every method starts from
the same noise, whatever the batch.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evaluation.images import through_jpeg, write_png
from experiments.sampling.call_arguments import call_arguments
from experiments.sampling.step_noise import noise_seed, own_noise
from experiments.store.unfinished import keep, kept

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig

SHARED = "shared"  # in a prompt id's place, where all prompts share their noise
Progress = Callable[[int], None]  # told how many prompts are done


def batches(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def sample(
    pipeline: Any,
    prompts: Sequence[Prompt],
    *,
    config: ModelConfig,
    seed: int,
    shared_noise: bool = False,
    output_type: str = "np",
) -> Any:
    """One call of the pipeline: images (N, H, W, 3) in [0, 1], or latents.

    Args:
        shared_noise: every prompt starts from one and the same noise.
    """
    keys = [SHARED if shared_noise else prompt.id for prompt in prompts]
    generators = [torch.Generator().manual_seed(noise_seed(key, seed=seed)) for key in keys]
    settings = call_settings(pipeline, config)
    with torch.no_grad(), own_noise(pipeline, keys, seed=seed):
        out = pipeline(
            # some take no list: of one generator it means the same
            generator=generators if len(generators) > 1 else generators[0],
            output_type=output_type,
            **call_arguments(pipeline, prompts),
            **settings,
        )
    return out.images


def call_settings(pipeline: Any, config: ModelConfig) -> dict[str, Any]:
    """The arguments that are the same for all prompts, as far as the pipeline takes them."""
    settings: dict[str, Any] = {"num_inference_steps": config.num_inference_steps, **config.call}
    for key in ("height", "width", "guidance_scale"):
        if getattr(config, key) is not None:
            settings[key] = getattr(config, key)
    accepted = inspect.signature(type(pipeline).__call__).parameters
    return {key: value for key, value in settings.items() if key in accepted}


def generate_images(
    pipeline: Any,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    config: ModelConfig,
    seed: int,
    progress: Progress,
    shared_noise: bool = False,
    jpeg: bool = False,
) -> dict[str, Any]:
    """Writes `<id>.png` for every prompt; goes on where a killed call stopped.

    A batch with one image missing is made again as a whole: another batch would move bits. What a
    killed call left without saying that it is done is not in the folder any more.

    Args:
        jpeg: images go through JPEG on their way, as those of some published protocols did.

    Returns:
        The ids whose images came out with a value that is not finite (they are drawn black), and
        the seconds that an image took in this call.
    """
    begun, count, done = time.perf_counter(), 0, 0
    known = kept(folder)
    for batch in batches(prompts, config.batch_size):
        paths = [folder / f"{prompt.id}.png" for prompt in batch]
        if not all(path.name in known and path.exists() for path in paths):
            made = sample(pipeline, batch, config=config, seed=seed, shared_noise=shared_noise)
            images = np.asarray(made, np.float32)
            for path, image in zip(paths, images, strict=True):
                clean = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0, 1.0)
                pixels = np.round(clean * 255.0).astype(np.uint8)
                write_png(
                    path,
                    through_jpeg(pixels) if jpeg else pixels,
                    before=partial(keep, path, finite=bool(np.isfinite(image).all())),
                )
            count += len(batch)
        done += len(batch)
        progress(done)
    finite = {name: notes["finite"] for name, notes in kept(folder).items()}
    return {
        "not_finite": [prompt.id for prompt in prompts if not finite[f"{prompt.id}.png"]],
        "seconds_per_image": (time.perf_counter() - begun) / count if count else None,
    }
