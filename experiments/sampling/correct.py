"""Learning a step-wise corrector on the quantized model's own path, and sampling with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from baselines.ptqd import calibrated_variance
from experiments.sampling.model_folder import (
    check_folder,
    denoisers_of,
    is_denoiser,
    pipeline_index,
)
from experiments.sampling.pipelines import get_denoiser, set_denoiser
from experiments.sampling.sample import batches, sample
from segquant.core.correction import (
    Attached,
    Corrector,
    StepPair,
    attach_corrector,
    latents_argument,
)
from segquant.core.predictions import as_batch, first_of
from segquant.core.stepwise import timestep_of

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig

_TENSORS, _TIMESTEPS = "corrector.safetensors", "timesteps.json"


@dataclass
class _Path:
    """What the unquantized model was given on its own path, call by call."""

    latents: list[Tensor] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)


def why_not_corrected(config: ModelConfig) -> str | None:
    """Why no correction of a prediction can be learned for what is quantized, or None."""
    names = denoisers_of(config, pipeline_index(check_folder(config)))
    if len(names) == 1 and is_denoiser(names[0]):
        return None
    return (
        "the correction is learned step by step on the prediction of one transformer or UNet, and "
        f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} quantized; choose one by "
        "model.denoisers, or another method"
    )


def learn_corrector(
    pipeline: Any,
    quantized: nn.Module,
    corrector: Corrector,
    folder: Path,
    *,
    prompts: Sequence[Prompt],
    config: ModelConfig,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Lets the corrector learn from every prompt, `rounds` times, and writes it to `folder`.

    The pipeline's own denoiser is the unquantized one; it is never corrected and is put back.
    """
    unquantized = get_denoiser(pipeline, config.denoisers)
    timesteps: tuple[float, ...] = ()
    done = 0
    for round_ in range(corrector.rounds):
        for batch in batches(prompts, config.batch_size):
            path = _own_path(pipeline, batch, config=config, seed=seed)
            timesteps = timesteps or tuple(dict.fromkeys(path.timesteps))
            hooks = _observing(
                quantized, unquantized, corrector, path, timesteps=timesteps, corrected=round_ > 0
            )
            set_denoiser(pipeline, quantized, config.denoisers)
            try:
                with hooks:
                    sample(pipeline, batch, config=config, seed=seed, output_type="latent")
            finally:
                set_denoiser(pipeline, unquantized, config.denoisers)
            done += len(batch)
            progress(done // corrector.rounds)
        corrector.fit()
    save_file(corrector.tensors(), folder / _TENSORS)
    (folder / _TIMESTEPS).write_text(json.dumps(timesteps))
    return {"prompts": len(prompts), "rounds": corrector.rounds}


def _own_path(pipeline: Any, batch: Sequence[Prompt], *, config: ModelConfig, seed: int) -> _Path:
    denoiser, path = get_denoiser(pipeline, config.denoisers), _Path()
    name = latents_argument(denoiser)

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = kwargs[name] if name in kwargs else args[0]
        path.latents.append(as_batch(latents).detach().clone())
        path.timesteps.append(float(timestep_of(module, args, kwargs)))

    handle = denoiser.register_forward_pre_hook(see, with_kwargs=True)
    try:
        sample(pipeline, batch, config=config, seed=seed, output_type="latent")
    finally:
        handle.remove()
    return path


@contextmanager
def _observing(
    quantized: nn.Module,
    unquantized: nn.Module,
    corrector: Corrector,
    path: _Path,
    *,
    timesteps: tuple[float, ...],
    corrected: bool,
) -> Iterator[None]:
    """Shows the corrector every call of the quantized denoiser; corrects it if `corrected`."""
    name = latents_argument(quantized)
    calls: list[Tensor] = []  # latents before correction

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs[name] if name in kwargs else args[0]
        calls.append(as_batch(given).detach().clone())

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        number = len(calls) - 1
        step = timesteps.index(path.timesteps[number])
        with torch.no_grad():
            reference = first_of(unquantized(*args, **kwargs))
        pair = StepPair(
            reference=reference,
            quantized=first_of(out),
            reference_input=path.latents[number],
            quantized_input=calls[number],
        )
        corrector.observe(pair, step=step)

    # Order matters: the raw input is seen before it is corrected, and so is the raw output.
    handles = [
        quantized.register_forward_pre_hook(before, with_kwargs=True),
        quantized.register_forward_hook(after, with_kwargs=True),
    ]
    attached = attach_corrector(quantized, corrector, timesteps=timesteps) if corrected else None
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if attached is not None:
            attached.remove()


def load_corrector(denoiser: nn.Module, corrector: Corrector, folder: Path) -> Attached:
    """Gives the corrector what it learned and hooks it to the quantized denoiser."""
    corrector.restore(load_file(folder / _TENSORS))
    timesteps = tuple(json.loads((folder / _TIMESTEPS).read_text()))
    return attach_corrector(denoiser, corrector, timesteps=timesteps)


@contextmanager
def corrected_noise(pipeline: Any, attached: Attached | None) -> Iterator[None]:
    """Takes the quantization's part off a stochastic sampler's noise, where there is one."""
    scheduler = pipeline.scheduler
    if attached is None or not _stochastic(attached.corrector, scheduler):
        yield
        return
    known = torch.tensor(attached.timesteps, dtype=torch.float64)
    original = scheduler._get_variance

    def variance(t: Any, *args: Any, **kwargs: Any) -> Any:
        own = original(t, *args, **kwargs)
        step = int((known - float(t)).abs().argmin())
        learned = attached.corrector.noise_variance(step=step)
        assert learned is not None
        error, factor = learned
        value = calibrated_variance(
            float(own), coefficient=_noise_factor(scheduler, t), error=error, factor=factor
        )
        return torch.as_tensor(own).new_tensor(value)

    scheduler._get_variance = variance
    try:
        yield
    finally:
        del scheduler._get_variance


def note_variance(
    corrector: Corrector, scheduler: Any, *, elements: list[str], left_out: list[str]
) -> None:
    """Says what became of a corrector's variance part, if it has one, for the record."""
    if not getattr(corrector, "variance", False):
        return
    kind, part = type(scheduler).__name__, "variance taken off a stochastic sampler's noise"
    if _stochastic_kind(scheduler):
        elements.append(f"{part} ({kind})")
    else:
        left_out.append(f"{part}: {kind} adds no noise of its own (or is not DDPM's)")


def _stochastic(corrector: Corrector, scheduler: Any) -> bool:
    return _stochastic_kind(scheduler) and corrector.noise_variance(step=0) is not None


def _stochastic_kind(scheduler: Any) -> bool:
    """DDPM's ancestral sampler with fixed variance and noise prediction: where c_t is known."""
    config = scheduler.config
    return (
        type(scheduler).__name__ == "DDPMScheduler"
        and config.variance_type in ("fixed_small", "fixed_large")
        and config.prediction_type == "epsilon"
    )


def _noise_factor(scheduler: Any, t: Any) -> float:
    """c_t: how much of the predicted noise DDPM's mean of x_{t-1} takes off x_t."""
    now = int(t)
    before = int(scheduler.previous_timestep(now))
    total = float(scheduler.alphas_cumprod[now])
    earlier = float(scheduler.alphas_cumprod[before]) if before >= 0 else 1.0
    alpha = total / earlier
    return float((1 - alpha) / (alpha**0.5 * (1 - total) ** 0.5))
