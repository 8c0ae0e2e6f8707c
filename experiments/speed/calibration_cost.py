"""What calibration and quantization cost from one pass of statistics, against a loop of 22 passes.

Both do the same work on the same recorded inputs of the same model, in one run: alpha searched for
every Linear, then rounding to nearest or GPTQ. See `experiments.speed.plain_loop`.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from evaluation.datasets.loading import load_dataset
from evaluation.report.markdown import pipe_table
from evaluation.resources import peak_memory_bytes, reset_peak_memory
from experiments.config.run_config import RunConfig
from experiments.errors import told_to_the_user
from experiments.sampling.machine import resolve_device
from experiments.sampling.pipelines import get_denoiser, load_pipeline
from experiments.sampling.threads import threads
from experiments.sampling.trajectory import (
    count_calls,
    device_of,
    record_trajectory,
    recorded_calls,
    replay_of,
)
from experiments.speed.plain_loop import LOOPED, PlainLayer, plain_loop
from segquant.core import Bits, Calibration, Rounding, StatisticsRecorder
from segquant.method import SegQuant

P = ParamSpec("P")
R = TypeVar("R")
STATISTICS, LOOP = "statistics", "loop of 22 passes"


@dataclass(kw_only=True)
class Cost:
    """One way to a quantized denoiser, measured."""

    model: str
    bits: str
    rounding: str
    way: str
    forwards: int
    seconds: float
    cpu_seconds: float  # of the process; on a shared machine the steadier of the two
    peak_memory_bytes: int  # above what the process (or device) held before
    output_error: float  # of the quantized denoiser on the calibration inputs, relative, squared


def measure(config: RunConfig, *, roundings: Sequence[Rounding] = LOOPED) -> list[Cost]:
    """Both ways for each rounding, each in a fresh process, so that no memory is left over.

    Sampling the inputs is common to both and is not timed, nor is loading the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        notes = _apart(_record, config, folder)
        return [
            _apart(_measure_one, config, folder, notes, rounding, way)
            for rounding in roundings
            for way in (STATISTICS, LOOP)
        ]


def _apart(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def _record(config: RunConfig, folder: Path) -> dict[str, Any]:
    pipeline = load_pipeline(config.model, device=resolve_device(config.device))
    with told_to_the_user():
        prompts = load_dataset(config.dataset).calibration
    with threads(config.num_threads or torch.get_num_threads()):
        return record_trajectory(pipeline, prompts, folder, config=config.model, seed=config.seed)


def _measure_one(
    config: RunConfig, folder: Path, notes: dict[str, Any], rounding: Rounding, way: str
) -> Cost:
    denoiser = get_denoiser(load_pipeline(config.model, device=resolve_device(config.device)))
    recorded = _Recorded(folder, notes)
    run = from_statistics if way == STATISTICS else by_loop
    with threads(config.num_threads or torch.get_num_threads()):
        recorded.replay(denoiser, calls=1)
        quantized, forwards, seconds, peak = _timed(
            lambda: run(denoiser, recorded, bits=config.bits, rounding=rounding)
        )
        error = recorded.output_error(quantized)
    return Cost(
        model=config.model.name,
        bits=config.bits.name,
        rounding=rounding.name,
        way=way,
        forwards=forwards,
        seconds=seconds[0],
        cpu_seconds=seconds[1],
        peak_memory_bytes=peak,
        output_error=error,
    )


@dataclass(frozen=True)
class _Recorded:
    """The denoiser's inputs and outputs on disk."""

    folder: Path
    notes: dict[str, Any]

    @property
    def calls(self) -> int:
        return count_calls(self.notes)

    def replay(self, denoiser: nn.Module, *, calls: int | None = None) -> None:
        replay_of(self.folder, self.notes)(denoiser, calls=calls)

    def output_error(self, denoiser: nn.Module) -> float:
        wrong = power = 0.0
        device = device_of(denoiser)
        with torch.no_grad():
            for _, calls in recorded_calls(self.folder, self.notes, device=device):
                for arguments, (said,) in calls:
                    output = denoiser(**arguments)[0].cpu().double()
                    wrong += float((output - said.double()).square().sum())
                    power += float(said.double().square().sum())
        return wrong / power


Way = tuple[nn.Module, int]


def from_statistics(
    denoiser: nn.Module, recorded: _Recorded, *, bits: Bits, rounding: Rounding
) -> Way:
    """One pass, then everything from its numbers."""
    method = SegQuant(seg_linear=False, dual_scale=False, rounding=rounding)
    needs = method.needs()
    recorder = StatisticsRecorder(denoiser, gram=needs.gram, sample_rows=needs.rows)
    with recorder:
        recorded.replay(denoiser)
    calibration = Calibration(statistics=recorder.statistics(), forwards=recorder.forwards)
    quantized = copy.deepcopy(denoiser)
    method.quantize(quantized, calibration=calibration, bits=bits)
    return quantized, recorder.forwards


def by_loop(denoiser: nn.Module, recorded: _Recorded, *, bits: Bits, rounding: Rounding) -> Way:
    layers, passes = plain_loop(denoiser, replay=recorded.replay, bits=bits, rounding=rounding)
    quantized = copy.deepcopy(denoiser)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(quantized.get_submodule(parent), child, _Quantized(layer))
    return quantized, passes * recorded.calls


class _Quantized(nn.Module):
    def __init__(self, layer: PlainLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.forward(x)


def _timed(run: Callable[[], Way]) -> tuple[nn.Module, int, tuple[float, float], int]:
    """Also the wall-clock and processor seconds, and the peak above what was there before."""
    gc.collect()
    reset_peak_memory()
    before = peak_memory_bytes()
    begun, cpu = time.perf_counter(), time.process_time()
    quantized, forwards = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun, time.process_time() - cpu
    return quantized, forwards, seconds, peak_memory_bytes() - before


def ratios(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Per rounding how many times as much the loop takes of each kind of seconds."""
    by_way = {(cost.rounding, cost.way): cost for cost in costs}
    return {
        rounding: {
            "seconds": by_way[rounding, LOOP].seconds / cost.seconds,
            "cpu_seconds": by_way[rounding, LOOP].cpu_seconds / cost.cpu_seconds,
        }
        for (rounding, way), cost in by_way.items()
        if way == STATISTICS
    }


def render(costs: Sequence[Cost]) -> str:
    head = ["model", "bits", "rounding", "way", "forwards", "seconds", "CPU seconds"]
    head += ["peak memory MB", "output error"]
    body = [
        [
            *(cost.model, cost.bits, cost.rounding, cost.way, str(cost.forwards)),
            *(f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}"),
            *(f"{cost.peak_memory_bytes / 1e6:.0f}", f"{cost.output_error:.3g}"),
        ]
        for cost in costs
    ]
    table = pipe_table(head, body, numeric=[index >= 4 for index in range(len(head))])
    told = [
        f"{rounding} {ratio['seconds']:.1f} ({ratio['cpu_seconds']:.1f} of CPU seconds)"
        for rounding, ratio in ratios(costs).items()
    ]
    return f"{table}\n\nSeconds of the loop over seconds from statistics: {', '.join(told)}.\n"
