"""Running a pipeline: images, calibration, and the reference's own trajectory.

Each prompt's noise comes from a CPU generator seeded by its id, so that every method starts from
the same noise, whatever the batch.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from evaluation.images import through_jpeg, write_png
from experiments.config.run_config import ModelConfig
from experiments.sampling.data import Prompt, noise_seed
from experiments.sampling.pipelines import get_denoiser
from segquant.graph import capture_example_inputs

_NOT_FINITE = ".not_finite"  # an empty file beside the image that says so
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
    settings: dict[str, Any] = {"num_inference_steps": config.num_inference_steps, **config.call}
    for key in ("height", "width", "guidance_scale"):
        if getattr(config, key) is not None:
            settings[key] = getattr(config, key)
    accepted = inspect.signature(type(pipeline).__call__).parameters
    settings = {key: value for key, value in settings.items() if key in accepted}
    with torch.no_grad():
        out = pipeline(
            prompt=[prompt.text for prompt in prompts],
            generator=generators,
            output_type=output_type,
            **settings,
        )
    return out.images


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

    A batch with one image missing is made again as a whole: another batch would move bits.

    Args:
        jpeg: images go through JPEG on their way, as those of some published protocols did.

    Returns:
        The ids whose images came out with a value that is not finite (they are drawn black), and
        the seconds that an image took in this call.
    """
    begun, count, done = time.perf_counter(), 0, 0
    for batch in batches(prompts, config.batch_size):
        paths = [folder / f"{prompt.id}.png" for prompt in batch]
        if not all(path.exists() for path in paths):
            made = sample(pipeline, batch, config=config, seed=seed, shared_noise=shared_noise)
            images = np.asarray(made, np.float32)
            for prompt, path, image in zip(batch, paths, images, strict=True):
                if not np.isfinite(image).all():
                    (folder / f"{prompt.id}{_NOT_FINITE}").touch()  # outlives a killed call
                clean = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0).clip(0.0, 1.0)
                pixels = np.round(clean * 255.0).astype(np.uint8)
                write_png(path, through_jpeg(pixels) if jpeg else pixels)
            count += len(batch)
        done += len(batch)
        progress(done)
    marked = {path.name.removesuffix(_NOT_FINITE) for path in folder.glob(f"*{_NOT_FINITE}")}
    return {
        "not_finite": [prompt.id for prompt in prompts if prompt.id in marked],
        "seconds_per_image": (time.perf_counter() - begun) / count if count else None,
    }


@contextmanager
def observed(
    denoiser: nn.Module, see: Callable[[dict[str, Any], torch.Tensor], None]
) -> Iterator[None]:
    """Calls `see(arguments, output)` at every call of the denoiser; arguments are named."""
    names = list(inspect.signature(denoiser.forward).parameters)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        see({**dict(zip(names, args, strict=False)), **kwargs}, out[0])

    handle = denoiser.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def example_inputs(pipeline: Any, prompt: Prompt, *, config: ModelConfig) -> dict[str, Any]:
    """The arguments of the denoiser's first call, as the pipeline gives them."""

    def call() -> Any:
        return sample(pipeline, [prompt], config=config, seed=0, output_type="latent")

    return capture_example_inputs(get_denoiser(pipeline), call)


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {k: _flatten(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"the denoiser's argument {name} is a {type(value).__name__}")


def _restore(tree: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    if "tensor" in tree:
        return tensors[tree["tensor"]].to(device)
    if "dict" in tree:
        return {key: _restore(value, tensors, device) for key, value in tree["dict"].items()}
    if "list" in tree:
        return [_restore(value, tensors, device) for value in tree["list"]]
    return tree["value"]


def record_trajectory(
    pipeline: Any,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    config: ModelConfig,
    seed: int,
    shared_noise: bool = False,
    limit_bytes: int | None = None,
) -> dict[str, Any]:
    """What the unquantized denoiser was given and said at every step, batch by batch.

    Returns:
        Per batch the prompts' number and the calls' argument trees, for `recorded_calls`.

    Raises:
        ValueError: it takes more than `limit_bytes`, looked at after every batch; what was written
            is removed.
    """
    described = []
    written = 0
    for index, batch in enumerate(batches(prompts, config.batch_size)):
        tensors: dict[str, torch.Tensor] = {}
        calls: list[Any] = []
        constant: dict[tuple[str, bytes], str] = {}

        def see(
            arguments: dict[str, Any],
            output: torch.Tensor,
            tensors: dict[str, torch.Tensor] = tensors,
            calls: list[Any] = calls,
            constant: dict[tuple[str, bytes], str] = constant,
        ) -> None:
            fresh: dict[str, torch.Tensor] = {}
            tree = _flatten(arguments, f"in{len(calls):04d}", fresh)
            renamed = {}
            for name, tensor in fresh.items():
                field = name.split(".", 1)[-1]
                content = (field, tensor.float().numpy().tobytes())
                renamed[name] = constant.setdefault(content, name)
                if renamed[name] == name:
                    tensors[name] = tensor
            tensors[f"out{len(calls):04d}"] = output.detach().cpu().contiguous()
            calls.append(_rename(tree, renamed))

        with observed(get_denoiser(pipeline), see):
            sample(
                pipeline,
                batch,
                config=config,
                seed=seed,
                shared_noise=shared_noise,
                output_type="latent",
            )
        path = folder / f"batch{index:04d}.safetensors"
        save_file(tensors, path)
        written += path.stat().st_size
        if limit_bytes is not None and written > limit_bytes:
            for stale in folder.glob("batch*.safetensors"):
                stale.unlink()
            done = (index + 1) * config.batch_size
            raise ValueError(
                f"the denoiser's inputs of {done} of {len(prompts)} prompts take "
                f"{written / 1e9:.3g} GB on disk, above replay_gigabytes={limit_bytes / 1e9:g}; "
                "raise replay_gigabytes, lower dataset.calibration_prompts, or choose a method "
                "that keeps no inputs (method.sequential=none)"
            )
        described.append({"prompts": len(batch), "calls": calls})
    return {"batches": described}


def _rename(tree: Any, names: dict[str, str]) -> Any:
    if "tensor" in tree:
        return {"tensor": names[tree["tensor"]]}
    if "dict" in tree:
        return {"dict": {key: _rename(value, names) for key, value in tree["dict"].items()}}
    if "list" in tree:
        return {"list": [_rename(value, names) for value in tree["list"]]}
    return tree


def replay_errors(denoiser: nn.Module, folder: Path, notes: dict[str, Any]) -> torch.Tensor:
    """Relative squared error of the denoiser on the reference's own trajectory.

    Returns:
        float64 (N, T): per prompt and call ||q - r||^2 / ||r||^2; where a call holds a prompt
        twice (guidance), both are summed.
    """
    device = device_of(denoiser)
    rows = []
    for described, calls in recorded_calls(folder, notes, device=device):
        steps = []
        for arguments, said in calls:
            with torch.no_grad():
                output = denoiser(**arguments)[0].detach().cpu().double()
            steps.append(_per_prompt(output, said.double(), described["prompts"]))
        rows.append(torch.stack(steps, dim=1))
    return torch.cat(rows)


def device_of(denoiser: nn.Module) -> torch.device:
    return next(iter(denoiser.state_dict().values())).device


Call = tuple[dict[str, Any], torch.Tensor]


def recorded_calls(
    folder: Path, notes: dict[str, Any], *, device: torch.device
) -> Iterator[tuple[dict[str, Any], Iterator[Call]]]:
    """Batch by batch of a recorded trajectory: its description, and what each call got and said."""

    def calls(trees: list[Any], tensors: dict[str, torch.Tensor]) -> Iterator[Call]:
        for number, tree in enumerate(trees):
            yield _restore(tree, tensors, device), tensors[f"out{number:04d}"]

    for index, described in enumerate(notes["batches"]):
        tensors = load_file(folder / f"batch{index:04d}.safetensors")
        yield described, calls(described["calls"], tensors)


def _per_prompt(output: torch.Tensor, reference: torch.Tensor, prompts: int) -> torch.Tensor:
    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (-1, prompts)).transpose(0, 1).flatten(1).square().sum(dim=1)

    return energy(output - reference) / energy(reference)
