"""Do alphas picked from statistics have the true layer error of the exhaustive search's?

    python -m experiments.studies.alpha_check --out experiments/results

For every Linear and every candidate alpha the error of the quantized layer is summed over all rows
that the layer reads while the denoiser runs over the calibration prompts. The excess of a layer is
how far the error of the alpha that the search picked, from its sampled rows, lies above the least.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation.datasets.loading import load_dataset
from evaluation.report.markdown import pipe_table
from experiments.config.compose import build, compose_config
from experiments.config.run_config import RunConfig
from experiments.sampling.pipelines import get_denoiser, load_pipeline
from experiments.sampling.trajectory import record_trajectory, replay_of
from experiments.store.folders import write_text
from segquant.core import Bits, LayerRecipe, SmoothingMode, SmoothingSettings, whole
from segquant.core.calibration import Replay
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.layer import QuantizedLayer, quantize_linear
from segquant.core.linear import QuantLinear
from segquant.core.plain_linears import linear_layers
from segquant.core.smoothing import Alpha

log = logging.getLogger(__name__)

MODELS = ("tiny_mmdit", "tiny_flux", "tiny_unet")
BITS = ("w8a8_int8", "w4a8_int")
ROWS = (256, 512, 1024)
TOLERANCE = 0.02
NAME = "alpha_search"  # of the files
COMMAND = "python -m experiments.studies.alpha_check"

Statistics = dict[str, LayerStatistics]


@dataclass(kw_only=True)
class Excess:
    """How far above the least error the picked alphas lie, over the layers of one denoiser."""

    model: str
    bits: str
    sample_rows: int
    use_gram: bool
    layers: int
    same_alpha: int
    mean_excess: float
    max_excess: float
    worst_layer: str
    above_tolerance: int


def settings_of(alpha: Alpha) -> SmoothingSettings:
    if alpha is None:
        return SmoothingSettings(mode=SmoothingMode.none)
    return SmoothingSettings(mode=SmoothingMode.fixed, alpha=alpha)


def quantized(
    name: str, linear: nn.Linear, seen: LayerStatistics, *, bits: Bits, smoothing: SmoothingSettings
) -> tuple[QuantLinear, QuantizedLayer]:
    shape = whole(in_features=linear.in_features, out_features=linear.out_features)
    recipe = LayerRecipe(smoothing=smoothing)
    return quantize_linear(linear, name=name, seen=seen, shape=shape, bits=bits, recipe=recipe)


def true_errors(
    denoiser: nn.Module, statistics: Statistics, *, bits: Bits, replay: Replay
) -> dict[str, list[float]]:
    """Per layer the squared error of every candidate, summed over all rows of the calibration."""
    candidates = SmoothingSettings(mode=SmoothingMode.search).candidates()
    errors = {name: [0.0] * len(candidates) for name in statistics}

    def watch(name: str, modules: list[QuantLinear]) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            for number, module in enumerate(modules):
                errors[name][number] += float((module(args[0]) - out).double().square().sum())

        return see

    with ExitStack() as hooks:
        for name, linear in linear_layers(denoiser).items():
            if name in statistics:
                modules = [
                    quantized(
                        name, linear, statistics[name], bits=bits, smoothing=settings_of(alpha)
                    )[0]
                    for alpha in candidates
                ]
                hooks.callback(linear.register_forward_hook(watch(name, modules)).remove)
        replay(denoiser)
    return errors


def compare(
    denoiser: nn.Module,
    statistics: Statistics,
    errors: dict[str, list[float]],
    *,
    model: str,
    bits: Bits,
    sample_rows: int,
    use_gram: bool,
) -> Excess:
    """The search on the first `sample_rows` of the sampled rows, judged by the true errors."""
    search = SmoothingSettings(mode=SmoothingMode.search, use_gram=use_gram)
    candidates = search.candidates()
    linears = linear_layers(denoiser)
    excess: dict[str, float] = {}
    same = 0
    for name, seen in statistics.items():
        fewer = replace(seen, sample_TI=seen.sample_TI[:sample_rows])
        _, entry = quantized(name, linears[name], fewer, bits=bits, smoothing=search)
        picked = candidates.index(entry.alphas[0][0])
        least = min(errors[name])
        excess[name] = errors[name][picked] / least - 1 if least > 0 else 0.0
        same += errors[name][picked] == least
    worst = max(excess, key=excess.__getitem__)
    return Excess(
        model=model,
        bits=bits.name,
        sample_rows=sample_rows,
        use_gram=use_gram,
        layers=len(excess),
        same_alpha=same,
        mean_excess=sum(excess.values()) / len(excess),
        max_excess=excess[worst],
        worst_layer=worst,
        above_tolerance=sum(value > TOLERANCE for value in excess.values()),
    )


def check(config: RunConfig, others: Sequence[Bits], counts: Sequence[int]) -> list[Excess]:
    """All comparisons of one model; the denoiser runs once for the statistics, once per bits."""
    pipeline = load_pipeline(config.model, device=torch.device("cpu"))
    prompts = load_dataset(config.dataset).calibration
    denoiser = get_denoiser(pipeline)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = Path(scratch)
        notes = record_trajectory(pipeline, prompts, folder, config=config.model, seed=config.seed)
        replay = replay_of(folder, notes)
        recorder = StatisticsRecorder(
            denoiser, gram=True, sample_rows=max(counts), seed=config.seed
        )
        with recorder:
            replay(denoiser)
        statistics = recorder.statistics()
        for bits in others:
            errors = true_errors(denoiser, statistics, bits=bits, replay=replay)
            for count in counts:
                for use_gram in (False, True):
                    excess = compare(
                        denoiser,
                        statistics,
                        errors,
                        model=config.model.name,
                        bits=bits,
                        sample_rows=count,
                        use_gram=use_gram,
                    )
                    log.info("%s", excess)
                    rows.append(excess)
    return rows


def render(rows: Sequence[Excess], *, command: str) -> str:
    head = ["model", "bits", "sampled rows", "use_gram", "layers", "same alpha"]
    head += ["mean excess", "max excess", f"above {TOLERANCE:.0%}"]
    body = [
        [
            *(row.model, row.bits, str(row.sample_rows), str(row.use_gram).lower()),
            *(str(row.layers), str(row.same_alpha)),
            *(f"{row.mean_excess:.3%}", f"{row.max_excess:.2%}", str(row.above_tolerance)),
        ]
        for row in rows
    ]
    lines = [
        "# Alphas picked from statistics against the exhaustive search",
        "",
        f"`{command}`",
        "",
        "Excess: error of the picked alpha over the least of all candidates, both on all",
        "calibration rows of the layer. Layers are not cut; weights rounded to nearest.",
        "",
        pipe_table(head, body, numeric=[*(False, False, True, False), *(True for _ in head[4:])]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=COMMAND, description=description)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--bits", nargs="+", default=list(BITS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--out", type=Path, default=None, help="folder for the table and the JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rows: list[Excess] = []
    for model in options.models:
        given = [f"model={model}", "method=smooth_search", *options.overrides]
        given.append(f"dataset.calibration_prompts={options.prompts}")
        cells = [
            build(compose_config([*given, f"bits={name}"]), method_name="smooth_search")
            for name in options.bits
        ]
        rows += check(cells[0], [cell.bits for cell in cells], options.rows)
    command = " ".join([COMMAND, *(arguments or sys.argv[1:])])
    text = render(rows, command=command)
    if options.out is not None:
        write_text(options.out / f"{NAME}.md", text)
        data = {"command": command, "rows": [asdict(row) for row in rows]}
        write_text(options.out / f"{NAME}.json", json.dumps(data, indent=1) + "\n")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
