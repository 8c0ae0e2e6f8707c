"""Corrections of a quantized denoiser, step by step: learned from what it does on its own path.

The quantized model is sampled; at each of its calls the unquantized one is given the same input,
and what the unquantized model was given at this step of its own path (same prompts, same noise) is
at hand. A corrector learns from these pairs and is then hooked to the quantized denoiser alone.

Legend: `...` any shape; channels are dimension 1 of an image-like tensor [B, C, H, W] and the last
of a sequence [B, L, C] (FLUX's packed latents).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from segquant.core.predictions import as_batch, first_of, like_batch, with_first
from segquant.core.stepwise import timestep_of


@dataclass(frozen=True, kw_only=True)
class StepPair:
    """One call of the quantized denoiser, and the unquantized one beside it; same shapes."""

    reference: Tensor  # the unquantized model's output on the quantized path's input
    quantized: Tensor  # the quantized model's output, before any correction
    reference_input: Tensor  # latents that the unquantized model was given on its own path
    quantized_input: Tensor  # latents that the quantized model was given, before any correction


@runtime_checkable
class Corrector(Protocol):
    """Corrects a quantized denoiser's input and output at each step, once it has learned."""

    rounds: int  # times that the quantized path is sampled to learn; from the second on, corrected

    def observe(self, pair: StepPair, *, step: int) -> None:
        """Takes in one call."""
        ...

    def fit(self) -> None:
        """Turns what was observed since the last fit into the correction."""
        ...

    def correct_input(self, latents: Tensor, *, step: int) -> Tensor:
        """What the denoiser is given instead of `latents`."""
        ...

    def __call__(self, output: Tensor, *, step: int) -> Tensor:
        """What the sampler is given instead of the denoiser's output."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What was learned, to be stored."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        ...

    def noise_variance(self, *, step: int) -> tuple[float, float] | None:
        """(variance of the output's error after correction, mean over channels; factor 1 + k) for
        a stochastic sampler to take off its own noise; None where the method has no such part."""
        ...


@dataclass
class Attached:
    """A corrector on a denoiser: the timesteps it knows, and the hooks that hold it there."""

    corrector: Corrector
    timesteps: tuple[float, ...]
    handles: tuple[torch.utils.hooks.RemovableHandle, ...] = ()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def attach_corrector(
    denoiser: nn.Module, corrector: Corrector, *, timesteps: tuple[float, ...]
) -> Attached:
    """Hooks the corrector to this denoiser; the step is that of the nearest known timestep."""
    name = latents_argument(denoiser)
    known = torch.tensor(timesteps, dtype=torch.float64)
    now = [0]

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        now[0] = int((known - float(timestep_of(module, args, kwargs))).abs().argmin())
        given = kwargs[name] if name in kwargs else args[0]
        corrected = corrector.correct_input(as_batch(given), step=now[0])
        changed = like_batch(given, corrected)
        if name in kwargs:
            return args, {**kwargs, name: changed}
        return (changed, *args[1:]), kwargs

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return with_first(output, corrector(first_of(output), step=now[0]))

    handles = (
        denoiser.register_forward_pre_hook(before, with_kwargs=True),
        denoiser.register_forward_hook(after),
    )
    return Attached(corrector=corrector, timesteps=timesteps, handles=handles)


def latents_argument(denoiser: nn.Module) -> str:
    """The name of the denoiser's first argument: its latents."""
    return next(iter(inspect.signature(denoiser.forward).parameters))


def channel_dim(x: Tensor) -> int:
    """Which dimension holds the channels (see the legend)."""
    return x.ndim - 1 if x.ndim <= 3 else 1


def by_channel(x: Tensor) -> Tensor:
    """[..] -> [C, K]: every channel's values in a row, float64."""
    return x.detach().double().movedim(channel_dim(x), 0).flatten(1)


def along_channels(value_C: Tensor, like: Tensor) -> Tensor:
    """Values per channel, shaped to broadcast against `like`."""
    shape = [1] * like.ndim
    shape[channel_dim(like)] = -1
    return value_C.reshape(shape).to(like.device)
