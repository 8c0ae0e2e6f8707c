"""What each activation code adds to a layer's output, measured on a pipeline's own inputs.

Static steps reach the extremes that other prompts had. An input of several producers is cut, and
each interval is judged for itself. The error is that of the code alone: weights stay as they are.

Legend: T rows, I input features, N output features, P prompts, C codings (`CODINGS`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.datasets.interface import Prompt
from evaluation.datasets.loading import load_dataset
from experiments.config.run_config import RunConfig
from experiments.sampling.machine import resolve_device
from experiments.sampling.pipelines import get_denoiser, load_pipeline
from experiments.sampling.sample import batches, sample
from experiments.sampling.static_graph import example_inputs
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.plain_linears import linear_layers
from segquant.graph import LayerGraph, analyze
from segquant.kernels import ActivationCode, Steps
from segquant.kernels.auto import Coding, output_powers

CODINGS = (
    *(Coding(code=code) for code in ActivationCode),
    *(
        Coding(code=code, steps=Steps.token)
        for code in (ActivationCode.symmetric, ActivationCode.zero_point, ActivationCode.dual)
    ),
)
PRODUCERS = {"silu": "SiLU", "gelu": "GELU", "gated gelu": "GEGLU", "gated silu": "SwiGLU"}
OTHER = "other"


@dataclass(kw_only=True)
class Unit:
    """One interval of one layer's input, and the sums over its rows, prompt by prompt."""

    layer: str
    kind: str
    start: int
    stop: int
    low: Tensor
    high: Tensor
    added: list[list[float]] = field(default_factory=list)  # per prompt, per coding
    own: list[float] = field(default_factory=list)
    positive: int = 0
    elements: int = 0

    def begin(self) -> None:
        self.added.append([0.0] * len(CODINGS))
        self.own.append(0.0)

    def see(self, x_TI: Tensor, w_NI: Tensor) -> None:
        part, weight = x_TI[:, self.start : self.stop], w_NI[:, self.start : self.stop]
        added, own = output_powers(part, weight, CODINGS, low=self.low, high=self.high)
        self.added[-1] = [a + b for a, b in zip(self.added[-1], added, strict=True)]
        self.own[-1] += own
        self.positive += int((part > 0).sum())
        self.elements += part.numel()

    def errors(self) -> NDArray[np.float64]:
        """Relative errors of the output [P, C]."""
        own_P1 = np.maximum(np.asarray(self.own)[:, None], 1e-300)
        relative_PC: NDArray[np.float64] = np.sqrt(np.asarray(self.added) / own_P1)
        return relative_PC


def kind_of(producer: str) -> str:
    """The kind of layer by what made its input, from the static graph's name for it."""
    activation = re.search(r"\(((?:gated )?\w+)\)$", producer)
    return OTHER if activation is None else PRODUCERS.get(activation.group(1), OTHER)


def units_of(
    denoiser: nn.Module, graph: LayerGraph, seen: dict[str, LayerStatistics]
) -> dict[str, list[Unit]]:
    """The units of every Linear that the calibration called; neighbours of one kind are one."""
    by_layer: dict[str, list[Unit]] = {}
    for name, linear in linear_layers(denoiser).items():
        if name not in seen:
            continue
        segments = [(s.size, kind_of(s.producer)) for s in graph[name].input_segments]
        kinds = {kind for _, kind in segments}
        if kinds == {OTHER} or not segments:
            segments = [(linear.in_features, OTHER)]
        start, units = 0, []
        for size, kind in segments:
            at = slice(start, start + size)
            low, high = seen[name].low_I[at].min(), seen[name].high_I[at].max()
            stop = start + size
            units.append(Unit(layer=name, kind=kind, start=start, stop=stop, low=low, high=high))
            start = stop
        by_layer[name] = units
    return by_layer


def measure(config: RunConfig, *, prompts: int, calibration: int, rows: int) -> list[Unit]:
    """One model: calibrates, then codes sampled rows of every layer's input at every step."""
    config.dataset.evaluation_prompts = prompts
    config.dataset.calibration_prompts = calibration
    dataset = load_dataset(config.dataset)
    pipeline = load_pipeline(config.model, device=resolve_device(config.device))
    denoiser = get_denoiser(pipeline)
    inputs = example_inputs(pipeline, dataset.calibration[0], config=config.model)
    graph = analyze(denoiser, inputs)
    with StatisticsRecorder(denoiser, gram=False, seed=config.seed) as recorder:
        for batch in batches(dataset.calibration, config.model.batch_size):
            _run(pipeline, batch, config)
    by_layer = units_of(denoiser, graph, recorder.statistics())
    units = [unit for of_layer in by_layer.values() for unit in of_layer]
    linears = linear_layers(denoiser)
    with ExitStack() as stack:
        for name, of_layer in by_layer.items():
            hook = _hook(of_layer, rows=rows)
            handle = linears[name].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for prompt in dataset.evaluation:
            for unit in units:
                unit.begin()
            _run(pipeline, [prompt], config)
    return units


def _run(pipeline: Any, batch: Sequence[Prompt], config: RunConfig) -> None:
    sample(pipeline, batch, config=config.model, seed=config.seed, output_type="latent")


def _hook(units: list[Unit], *, rows: int) -> Callable[..., None]:
    def see(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        x_TI = x.detach().reshape(-1, x.shape[-1])
        if x_TI.shape[0] > rows:
            x_TI = x_TI[torch.linspace(0, x_TI.shape[0] - 1, rows).long()]
        for unit in units:
            unit.see(x_TI.float(), module.weight.detach())

    return see
