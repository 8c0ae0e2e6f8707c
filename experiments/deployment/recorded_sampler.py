"""A pipeline's run written down: what its networks were given, and each step as a line.

A step of a sampler that remembers nothing is x' = keep x + move out, where out is the denoiser's
(guided) output. The two numbers are read off a run, and a sampler that is no such line is refused.
Another function of its arguments stands in the denoiser's place in that run: the sampler does the
same whatever it is, a function of one line costs nothing, and has no chaos in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.errors import UserError
from experiments.sampling.pipelines import get_denoiser
from segquant.core.timesteps import timestep_name
from segquant.deploy.onnx_export import flat_arguments

_EXACT = 1e-4  # relative, of float32 arithmetic in another order


@dataclass(kw_only=True)
class Step:
    """One step of the sampler."""

    timestep: float
    scale: float  # of the sample, as the denoiser gets it
    keep: float
    move: float


@dataclass(kw_only=True)
class Recording:
    """One prompt's run."""

    call: dict[str, Any] = field(default_factory=dict)  # of the denoiser, the first
    sample: str = ""  # the argument that is denoised
    timestep: str = ""
    guided: bool = False
    guidance_scale: float = 1.0
    noise: Tensor  # (1, ...)
    first: float = 1.0  # the sample begins at this much noise
    steps: list[Step] = field(default_factory=list)
    latents: Tensor | None = None  # after the last step
    image: Tensor | None = None  # (H, W, 3) in [0, 1]


def record_run(pipeline: Any, run: Callable[[Tensor], Any], *, noise: Tensor) -> Recording:
    """Runs the pipeline on one prompt from this noise and writes it down.

    Args:
        run: calls the pipeline with `latents=` what it is given, and returns the image.

    Raises:
        UserError: a step is no line, or the sampler draws noise.
    """
    recording, scheduler = Recording(noise=noise), pipeline.scheduler
    calls: list[dict[str, Any]] = []
    own_step = scheduler.step

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = own_step(model_output, timestep, sample, *args, **kwargs)
        after = out[0] if isinstance(out, tuple) else out.prev_sample
        _note(recording, calls[-1], output=model_output, before=sample, after=after)
        return out

    scheduler.step = step
    try:
        with standing_in(pipeline, calls):
            recording.image = torch.as_tensor(run(noise))
    finally:
        del scheduler.step
    recording.call = calls[0]
    if recording.guided:
        recording.guidance_scale = float(pipeline.guidance_scale)
    return recording


@contextmanager
def standing_in(pipeline: Any, calls: list[dict[str, Any]]) -> Iterator[None]:
    """`stand_in` in the denoiser's place; its calls' arguments by name go to `calls`."""
    denoiser = get_denoiser(pipeline)
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(dict(zip(names, args, strict=False)) | kwargs)
        given = [v for v in flat_arguments(calls[-1]).values() if isinstance(v, Tensor)]
        return (stand_in(given[0], given[1:]),)

    own = denoiser.forward
    denoiser.forward = forward
    try:
        yield
    finally:
        denoiser.forward = own


def stand_in(sample: Tensor, others: Sequence[Tensor]) -> Tensor:
    """What stands in the denoiser's place: it depends on all that the denoiser is given."""
    rows = sample.shape[0]
    total = torch.zeros(rows)
    for value in others:
        a_row_each = value.dim() > 1 and value.shape[0] == rows
        own = value.float().reshape(rows, -1).mean(1) if a_row_each else value.float().mean()
        total = total + own
    return 0.3 * sample.float() + 0.1 * sample.float().sin() * total.tanh().reshape(
        -1, *(1,) * (sample.dim() - 1)
    )


def _note(
    recording: Recording, call: Mapping[str, Any], *, output: Tensor, before: Tensor, after: Tensor
) -> None:
    given = {name: value for name, value in call.items() if value is not None}
    names = [name for name, value in given.items() if _like(value, before)]
    if not recording.sample:
        recording.sample = names[0]
        recording.timestep = str(timestep_name(given))
        recording.guided = call[recording.sample].shape[0] == 2 * before.shape[0]
        recording.first = _ratio(before, recording.noise, what="the first sample")
    keep, move = _line(before, output, after)
    recording.latents = after
    recording.steps.append(
        Step(
            timestep=float(torch.as_tensor(given[recording.timestep]).flatten()[0]),
            scale=_ratio(
                call[recording.sample][: before.shape[0]], before, what="the scaled sample"
            ),
            keep=keep,
            move=move,
        )
    )


def _like(value: Any, sample: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape[1:] == sample.shape[1:]


def _ratio(value: Tensor, of: Tensor, *, what: str) -> float:
    a, b = value.double().flatten(), of.double().flatten()
    ratio = float(a @ b / (b @ b))
    _check(a, ratio * b, what=what)
    return ratio


def _line(before: Tensor, output: Tensor, after: Tensor) -> tuple[float, float]:
    columns = torch.stack([before.double().flatten(), output.double().flatten()], 1)
    solved = torch.linalg.lstsq(columns, after.double().flatten()[:, None]).solution[:, 0]
    _check(after.double().flatten(), columns @ solved, what="a step")
    return float(solved[0]), float(solved[1])


def _check(found: Tensor, told: Tensor, *, what: str) -> None:
    if float((found - told).norm()) > _EXACT * float(found.norm()):
        raise UserError(
            f"{what} of this sampler is no sum of the sample and the denoiser's output (it draws "
            "noise or remembers earlier steps), and generate.py could not repeat it; export with "
            "--denoiser-only, or save the pipeline with an Euler or DDIM scheduler"
        )
