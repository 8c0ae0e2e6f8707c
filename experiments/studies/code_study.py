"""How wrong each activation code is on real activations, against the products it costs.

    python -m experiments.studies.code_study --models tiny_mmdit tiny_flux tiny_unet

writes `experiments/results/activation_codes.md` and, layer by layer, `activation_codes.csv`. For
any other model: `--models folder model.path=FOLDER_OR_HUB_ID` with as many prompts as it allows.

Static steps reach the extremes that other prompts had. An input of several producers is cut, and
each interval is judged for itself. The error is that of the code alone: weights stay as they are.

Legend: T rows, I input features, N output features, P prompts, U units (an interval of a layer).
"""

from __future__ import annotations

import argparse
import csv
import io
import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.statistics import bootstrap_mean
from experiments.config.compose import build, compose_config
from experiments.config.run_config import RunConfig
from experiments.sampling.data import Prompt, load_dataset
from experiments.sampling.generate import batches, example_inputs, sample
from experiments.sampling.pipelines import get_denoiser, load_pipeline, resolve_device
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder, linear_layers
from segquant.graph import LayerGraph, analyze
from segquant.kernels import ActivationCode, Steps
from segquant.kernels.auto import Coding, output_powers

log = logging.getLogger(__name__)

WRITTEN = RESULTS / "activation_codes.md"
NAMES = ("tiny_mmdit", "tiny_flux", "tiny_unet")
CODINGS = (
    *(Coding(code=code) for code in ActivationCode),
    *(
        Coding(code=code, steps=Steps.token)
        for code in (ActivationCode.symmetric, ActivationCode.zero_point, ActivationCode.dual)
    ),
)
PRODUCERS = {"silu": "SiLU", "gelu": "GELU", "gated gelu": "GEGLU", "gated silu": "SwiGLU"}
OTHER = "other"
# What the synthetic study claims, tested here: numerator and denominator of a ratio of errors.
RATIOS = (("dual", "zero_point"), ("dual", "high_low"), ("dual", "dual_wide"), ("fp8", "dual"))


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

    def errors(self) -> Any:
        """Relative errors [P, codings]."""
        own = np.maximum(np.asarray(self.own)[:, None], 1e-300)
        return np.sqrt(np.asarray(self.added) / own)


def kind_of(producer: str) -> str:
    """The kind of layer by what made its input, from the static graph's name for it."""
    found = re.search(r"\(((?:gated )?\w+)\)$", producer)
    return OTHER if found is None else PRODUCERS.get(found.group(1), OTHER)


def units_of(
    denoiser: nn.Module, graph: LayerGraph, seen: dict[str, LayerStatistics]
) -> dict[str, list[Unit]]:
    """The units of every Linear that the calibration called; neighbours of one kind are one."""
    found: dict[str, list[Unit]] = {}
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
        found[name] = units
    return found


def study(config: RunConfig, *, prompts: int, calibration: int, rows: int) -> list[Unit]:
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
    units = units_of(denoiser, graph, recorder.statistics())
    flat = [unit for found in units.values() for unit in found]
    linears = linear_layers(denoiser)
    with ExitStack() as stack:
        for name, found in units.items():
            hook = _hook(found, rows=rows)
            handle = linears[name].register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for prompt in dataset.evaluation:
            for unit in flat:
                unit.begin()
            _run(pipeline, [prompt], config)
    return flat


def _run(pipeline: Any, batch: Sequence[Prompt], config: RunConfig) -> None:
    sample(pipeline, batch, config=config.model, seed=config.seed, output_type="latent")


def _hook(units: list[Unit], *, rows: int) -> Any:
    def see(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        x_TI = x.detach().reshape(-1, x.shape[-1])
        if x_TI.shape[0] > rows:
            x_TI = x_TI[torch.linspace(0, x_TI.shape[0] - 1, rows).long()]
        for unit in units:
            unit.see(x_TI.float(), module.weight.detach())

    return see


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of layer of one model: per coding a percentage, per ratio a number, as text."""

    model: str
    kind: str
    units: int
    positive: float
    errors: list[str]
    spread: list[str]
    ratios: list[str]


def summarize(model: str, units: Sequence[Unit]) -> list[Row]:
    """By kind of layer: means over its layers, with intervals over prompts."""
    rows = []
    kinds = [*PRODUCERS.values(), OTHER]
    for kind in kinds:
        own = [unit for unit in units if unit.kind == kind and sum(unit.own) > 0]
        if not own:
            continue
        errors_UPC = np.stack([unit.errors() for unit in own])
        mean_PC = 100 * errors_UPC.mean(0)
        layers_UC = 100 * errors_UPC.mean(1)
        names = [coding.code.name for coding in CODINGS[: len(ActivationCode)]]
        ratios = []
        for above, below in RATIOS:
            pair = errors_UPC[..., names.index(above)], errors_UPC[..., names.index(below)]
            ratios.append(_interval(np.exp(np.log(pair[0] / pair[1]).mean(0))))
        rows.append(
            Row(
                model=model,
                kind=kind,
                units=len(own),
                positive=sum(u.positive for u in own) / sum(u.elements for u in own),
                errors=[_interval(mean_PC[:, at]) for at in range(len(CODINGS))],
                spread=[f"{c.min():.2g} to {c.max():.2g}" for c in layers_UC.T],
                ratios=ratios,
            )
        )
    return rows


def _interval(values_P: Any) -> str:
    found = bootstrap_mean(values_P, seed=0)
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def markdown(rows: Sequence[Row], *, command: str, prompts: int, per_call: int) -> str:
    """The study as committed."""
    static, token = CODINGS[: len(ActivationCode)], CODINGS[len(ActivationCode) :]
    head = ["model", "input", "layers", "P(x>0)"]
    lines = [
        "# Activation codes on real activations",
        "",
        f"Made by `{command}`.",
        "",
        "Relative error of a layer's output in percent, from the code of its input alone (weights",
        "unquantized): mean over the layers of a kind, with a 95 % bootstrap interval over "
        f"{prompts} held-out",
        f"prompts, every denoising step, up to {per_call} rows a call. Static steps come from "
        "other prompts.",
        "An input of several producers is cut and each interval judged for itself. The number of",
        "products a code costs is in brackets. `dual` is the paper's DualScale. These are small",
        "models: what holds for large ones is for the same command to say.",
        "",
        "## Static steps, percent",
        "",
        *_table(
            [*head, *(f"{c.code.name} ({c.code.planes}x)" for c in static)],
            [[*_head(row), *row.errors[: len(static)]] for row in rows],
        ),
        "",
        "Lowest to highest layer:",
        "",
        *_table(
            [*head, *(c.code.name for c in static)],
            [[*_head(row), *row.spread[: len(static)]] for row in rows],
        ),
        "",
        "## Steps by token, percent",
        "",
        *_table(
            [*head, *(f"{c.code.name} ({c.code.planes}x)" for c in token)],
            [[*_head(row), *row.errors[len(static) :]] for row in rows],
        ),
        "",
        "## Ratios of static errors (geometric mean over layers)",
        "",
        *_table(
            [*head, *(f"{above} / {below}" for above, below in RATIOS)],
            [[*_head(row), *row.ratios] for row in rows],
        ),
    ]
    return "\n".join(lines) + "\n"


def _head(row: Row) -> list[str]:
    return [row.model, row.kind, str(row.units), f"{row.positive:.2f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def per_layer(model: str, units: Sequence[Unit]) -> list[list[str]]:
    """Rows of the csv: every unit under every coding, mean over prompts."""
    rows = []
    for unit in units:
        mean_C = unit.errors().mean(0)
        positive = unit.positive / max(unit.elements, 1)
        interval = f"{unit.start}:{unit.stop}"
        for coding, error in zip(CODINGS, mean_C, strict=True):
            start = [model, unit.layer, interval, unit.kind, f"{positive:.4f}"]
            made = [coding.code.name, coding.steps.name, str(coding.code.planes)]
            rows.append([*start, *made, f"{error:.6g}"])
    return rows


CSV_HEAD = (
    *("model", "layer", "features", "input", "positive"),
    *("code", "steps", "products", "relative_error"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.code_study")
    parser.add_argument("--models", nargs="+", default=list(NAMES))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--rows", type=int, default=16, help="sampled at every call")
    parser.add_argument("--out", type=Path, default=WRITTEN)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options, more = parser.parse_known_args(arguments)
    overrides = [item for item in [*options.models, *options.overrides, *more] if "=" in item]
    models = [name for name in options.models if "=" not in name]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows: list[Row] = []
    layers: list[list[str]] = []
    for model in models:
        config = build(compose_config([f"model={model}", *overrides]), method_name="")
        counts = {"prompts": options.prompts, "calibration": options.calibration}
        units = study(config, **counts, rows=options.rows)
        rows += summarize(config.model.name, units)
        layers += per_layer(config.model.name, units)
        log.info("%s: %d inputs", config.model.name, len(units))
    given = " ".join(["--models", *models, *overrides])
    command = f"python -m experiments.studies.code_study {given} --prompts {options.prompts}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, command=command, prompts=options.prompts, per_call=options.rows)
    write_text(options.out, text)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([CSV_HEAD, *layers])
    write_text(options.out.with_suffix(".csv"), table.getvalue())


if __name__ == "__main__":
    main()
