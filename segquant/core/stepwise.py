"""What calibration saw at each sampling step, and how a quantized layer knows the step.

A step is told by the timestep that the pipeline gives the denoiser, whatever that argument is
called: two calls with one timestep (guidance done as two calls) are one step, and a call whose
timestep was never calibrated belongs to the nearest one.

Legend: S steps, K sampled rows of a step, I input features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from segquant.core.files import read_folder, write_folder
from segquant.core.linear import QuantLinear
from segquant.core.plain_linears import linear_layers
from segquant.core.row_sample import RowSample
from segquant.core.several import called_parts, named_arguments
from segquant.core.timesteps import timestep_name

KIND = "statistics per step"
STEP_ROWS = 32  # rows kept per layer and step


@dataclass(frozen=True, kw_only=True)
class LayerSteps:
    """The inputs of one Linear at each of its steps, in the sampler's order; float32, CPU."""

    timesteps: tuple[float, ...]
    low_SI: Tensor
    high_SI: Tensor
    sample_SKI: Tensor

    @property
    def amax(self) -> Tensor:
        return torch.maximum(-self.low_SI, self.high_SI)


StepStatistics = Mapping[str, LayerSteps]


def save_steps(steps: StepStatistics, folder: str | os.PathLike[str]) -> None:
    """Writes safetensors and JSON."""
    tensors: dict[str, Tensor] = {}
    for name, layer in steps.items():
        tensors |= {f"{name}.low_SI": layer.low_SI, f"{name}.high_SI": layer.high_SI}
        tensors[f"{name}.sample_SKI"] = layer.sample_SKI
    timesteps = {name: list(layer.timesteps) for name, layer in steps.items()}
    write_folder(folder, tensors=tensors, manifest={"kind": KIND, "timesteps": timesteps})


def load_steps(folder: str | os.PathLike[str]) -> StepStatistics:
    """What `save_steps` wrote, bit for bit."""
    tensors, manifest = read_folder(folder, kind=KIND)
    keys = ("low_SI", "high_SI", "sample_SKI")
    return {
        name: LayerSteps(timesteps=tuple(times), **{k: tensors[f"{name}.{k}"] for k in keys})
        for name, times in manifest["timesteps"].items()
    }


def timestep_of(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The timestep of one call, float32 ().

    Raises:
        ValueError: the call has none, or the samples of its batch are at different ones.
    """
    passed = named_arguments(denoiser, args, kwargs)
    passed = {name: value for name, value in passed.items() if value is not None}
    name = timestep_name(passed)
    if name is None:
        raise ValueError(
            f"{type(denoiser).__name__} was called with {', '.join(passed)}: none of them is a "
            "timestep, and a method that goes by sampling step was asked for; use one that does not"
        )
    given = torch.as_tensor(passed[name]).float().flatten()
    # a graph that is compiled cannot look at values
    if not torch.compiler.is_compiling() and bool((given != given[0]).any()):
        raise ValueError(
            f"one call holds timesteps {given.min():g} to {given.max():g}, and a method that goes "
            "by sampling step was asked for; give all samples of a batch the same timestep"
        )
    return given[0]


@dataclass(frozen=True, kw_only=True)
class SeenStep:
    """What one Linear was given at one step: all that is kept of it, and the rows' draws."""

    low_I: Tensor
    high_I: Tensor
    rows_KI: Tensor
    priority_K: Tensor  # float64, smallest first


SeenSteps = Mapping[str, Mapping[float, SeenStep]]  # layer -> timestep, in the order of the calls


def stack_steps(steps: Mapping[float, SeenStep]) -> LayerSteps:
    """A layer's steps, with as many rows of each as the step with the fewest has."""
    count = min(step.rows_KI.shape[0] for step in steps.values())
    return LayerSteps(
        timesteps=tuple(steps),
        low_SI=torch.stack([step.low_I for step in steps.values()]),
        high_SI=torch.stack([step.high_I for step in steps.values()]),
        sample_SKI=torch.stack([step.rows_KI[:count] for step in steps.values()]),
    )


@dataclass
class _Running:
    """The running numbers of one Linear at one step."""

    sample: RowSample
    low_I: Tensor
    high_I: Tensor


class StepRecorder:
    """Records extremes and some rows of every Linear's input for each step, while in the block.

    Set `batch` to its number before each batch, each number once, as for statistics.

    Args:
        denoiser: its forward must take a timestep; it stays as it is.
        rows: kept per layer and step, drawn uniformly.
        seed: of the draw.
    """

    def __init__(self, denoiser: nn.Module, *, rows: int = STEP_ROWS, seed: int = 0) -> None:
        self._denoiser, self._rows, self._seed = denoiser, rows, seed
        self._linears = linear_layers(denoiser)
        self._running: dict[str, dict[float, _Running]] = {name: {} for name in self._linears}
        self.batch = 0
        self._now = 0.0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._now = float(timestep_of(module, args, kwargs))

        for part in called_parts(self._denoiser).values():
            self._hooks.append(part.register_forward_pre_hook(note, with_kwargs=True))
        for name, linear in self._linears.items():
            self._hooks.append(linear.register_forward_pre_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._record(name, args[0] if args else kwargs["input"])

        return record

    @torch.no_grad()
    def _record(self, name: str, x: Tensor) -> None:
        x_TI = x.detach().reshape(-1, x.shape[-1])
        if not x_TI.shape[0]:
            return
        low_I, high_I = x_TI.amin(0).float().cpu(), x_TI.amax(0).float().cpu()
        step = self._running[name].get(self._now)
        if step is None:
            sample = RowSample(keep=self._rows, seed=self._seed)
            step = self._running[name][self._now] = _Running(sample, low_I, high_I)
        step.low_I = torch.minimum(step.low_I, low_I)
        step.high_I = torch.maximum(step.high_I, high_I)
        step.sample.add(x_TI, batch=self.batch)

    def seen(self) -> SeenSteps:
        """What was seen of each layer that was called."""
        return {
            name: {timestep: _seen(step) for timestep, step in steps.items()}
            for name, steps in self._running.items()
            if steps
        }

    def statistics(self) -> StepStatistics:
        """What was seen of each layer that was called; steps in the order of the calls."""
        return {name: stack_steps(steps) for name, steps in self.seen().items()}


def _seen(step: _Running) -> SeenStep:
    rows_KI, priority_K = step.sample.rows_KI, step.sample.priority_K
    assert rows_KI is not None
    assert priority_K is not None
    return SeenStep(low_I=step.low_I, high_I=step.high_I, rows_KI=rows_KI, priority_K=priority_K)


def follow_steps(denoiser: nn.Module) -> None:
    """Makes every layer with scales per step know the step, at each call of the denoiser.

    Does nothing where no layer has any, and nothing the second time.
    """
    for part in called_parts(denoiser).values():
        stepped = [m for m in part.modules() if isinstance(m, QuantLinear) and m.spec.steps]
        if stepped and _tell_step not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_tell_step, with_kwargs=True)


def _tell_step(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    now = timestep_of(module, args, kwargs)
    for layer in module.modules():
        if isinstance(layer, QuantLinear) and layer.step_timesteps is not None:
            layer.step = (layer.step_timesteps - now.to(layer.step_timesteps.device)).abs().argmin()
