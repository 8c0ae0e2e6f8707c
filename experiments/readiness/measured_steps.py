"""A few steps of a model, timed: what an image and a forward take where the store knows nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evaluation.resources import peak_memory_bytes, reset_peak_memory
from experiments.sampling.calibrate import recorded_rows
from experiments.sampling.sample import sample
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.several import called_parts

if TYPE_CHECKING:
    from experiments.cell.surroundings import Surroundings

_FEW, _MORE = 1, 3  # steps; their difference is two steps without texts and pictures


@dataclass(frozen=True, kw_only=True)
class MeasuredSteps:
    """Of one prompt in a call: of larger batches an image takes no more."""

    seconds_per_forward: float
    seconds_per_recorded_forward: float  # while statistics of every Linear's input are taken
    seconds_beside: float  # texts, pictures, and whatever else is no step; of an image
    calls_per_step: int
    steps: int  # of an image
    peak_memory_bytes: int

    @property
    def seconds_per_image(self) -> float:
        return self._seconds(self.seconds_per_forward)

    @property
    def seconds_per_calibration_prompt(self) -> float:
        return self._seconds(self.seconds_per_recorded_forward)

    def _seconds(self, forward: float) -> float:
        return self.seconds_beside + forward * self.calls_per_step * self.steps


def measure_steps(around: Surroundings) -> MeasuredSteps:
    """Samples one prompt with one step and with three, after a call that warms up.

    Raises:
        UserError: the model cannot be loaded.
    """
    model = around.model
    prompts = around.dataset.evaluation[:1]
    seed = around.config.seed

    def timed(pipeline: Any, steps: int) -> tuple[float, int]:
        config = replace(around.config.model, num_inference_steps=steps, batch_size=1)
        with _counted(model.denoiser) as count:
            begun = time.perf_counter()
            sample(pipeline, prompts, config=config, seed=seed)
            if around.device.type == "cuda":
                torch.cuda.synchronize(around.device)
            return time.perf_counter() - begun, count[0]

    reset_peak_memory()
    with model.running(None, num_threads=around.num_threads) as pipeline:
        timed(pipeline, _FEW)
        few, calls_of_few = timed(pipeline, _FEW)
        more, calls_of_more = timed(pipeline, _MORE)
        rows = recorded_rows(around.needs)
        with StatisticsRecorder(model.denoiser, gram=around.needs.gram, sample_rows=rows):
            recorded, calls_of_recorded = timed(pipeline, _FEW)
    calls = max(1, calls_of_more - calls_of_few)
    forward = max(0.0, more - few) / calls
    beside = max(0.0, few - forward * calls_of_few)
    return MeasuredSteps(
        seconds_per_forward=forward,
        seconds_per_recorded_forward=max(forward, (recorded - beside) / max(1, calls_of_recorded)),
        seconds_beside=beside,
        calls_per_step=max(1, round(calls / (_MORE - _FEW))),
        steps=around.config.model.num_inference_steps,
        peak_memory_bytes=peak_memory_bytes(),
    )


@contextmanager
def _counted(denoiser: nn.Module) -> Iterator[list[int]]:
    count = [0]

    def one_more(*_: Any) -> None:
        count[0] += 1

    parts = called_parts(denoiser).values()  # a container of several is never called itself
    handles = [part.register_forward_pre_hook(one_more) for part in parts]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
