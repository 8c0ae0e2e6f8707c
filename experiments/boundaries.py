"""Does it matter that SegLinear cuts where the graph does? `python -m experiments.boundaries`.

The SegQuant paper's table 6 as an experiment: the same method with as many segments, cut at the
graph's boundaries, at random ones, at ones moved by half a segment, or not at all. Every
calibration seed draws its own calibration prompts (and its own random cuts); all arms of a seed
share one calibration. Measured on inputs that no calibration saw:

- layer error: ||Y - Y_quantized||^2 / ||Y||^2 of each layer that the graph cuts, on the
  unquantized model's own inputs for evaluation prompts; the geometric mean over layers;
- step error: of the whole denoiser, on the same trajectory.

Arms are compared within a seed, as ratios: their geometric mean over seeds and Student's 95 %
interval. Results go to `experiments/results/boundaries.{md,csv}`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from evaluation.statistics import mean_over_runs
from experiments.bench import Bench, threads
from experiments.config import build, compose_config
from experiments.generate import replay_errors
from experiments.progress import Progress
from experiments.store import Store, write_text
from segquant.core.checkpoint import load_quantized
from segquant.core.statistics import LayerStatistics, StatisticsRecorder, linear_layers

log = logging.getLogger(__name__)

RESULTS = Path(__file__).resolve().parent / "results"
ARMS = ("none", "graph", "random", "mismatched")
PAIRS = (
    ("graph", "none"),
    ("random", "none"),
    ("mismatched", "none"),
    ("graph", "random"),
    ("graph", "mismatched"),
)
ERRORS = ("layer_error", "step_error")
RECIPES: Mapping[str, tuple[str, ...]] = {
    "scales only": ("method.smoothing=none",),
    "with alpha search": (),
    "with alpha search and GPTQ": ("method.rounding=gptq",),
}
BITS = ("w8a8_int8", "w4a8_int_tensor", "w4a8_int")
_HELD_OUT_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One arm under one calibration seed."""

    bits: str
    recipe: str
    arm: str
    seed: int
    layer_error: float  # geometric mean over the layers that the graph cuts
    step_error: float


def outcomes_of_seed(
    seed: int, *, model: str, overrides: Sequence[str], bits: Sequence[str], store: Store
) -> list[Outcome]:
    """All arms of one calibration."""

    def config(*more: str) -> object:
        line = [
            f"model={model}",
            "method=segquant_seg_only",
            f"dataset.calibration_seed={seed}",
            f"method.boundary_seed={seed}",
            *overrides,
            *more,
        ]
        return build(compose_config(line), method_name="segquant_seg_only")

    richest = config("method.rounding=gptq", f"bits={bits[0]}")
    progress = Progress(cells=1, prompts=0)
    bench = Bench(config=richest, store=store, progress=progress, needs=richest.method.needs())  # type: ignore
    held_out = _held_out(bench)
    cut = [
        name
        for name, layer in bench.graph.items()
        if name in held_out and (len(layer.output_segments) > 1 or len(layer.input_segments) > 1)
    ]
    found = []
    for width in bits:
        for recipe, changes in RECIPES.items():
            for arm in ARMS:
                cell = config(*changes, f"method.boundaries={arm}", f"bits={width}")
                stage = bench.quantized(cell)  # type: ignore[arg-type]
                denoiser, _ = load_quantized(
                    copy.deepcopy(bench.float_denoiser), stage.path / "denoiser"
                )
                errors = bench.step_errors(denoiser, stage.hash, floor=None)
                assert errors is not None
                layer = _layer_error(bench.float_denoiser, denoiser, held_out, cut)
                found.append(
                    Outcome(
                        bits=width,
                        recipe=recipe,
                        arm=arm,
                        seed=seed,
                        layer_error=layer,
                        step_error=float(errors.mean()),
                    )
                )
                log.info("%s", found[-1])
    return found


def _held_out(bench: Bench) -> dict[str, LayerStatistics]:
    """Inputs of every Linear on the unquantized model's way through evaluation prompts."""
    trajectory = bench.trajectory()
    assert trajectory is not None, "metrics.teacher_forced_prompts is 0"
    recorder = StatisticsRecorder(bench.float_denoiser, gram=False, sample_rows=_HELD_OUT_ROWS)
    with threads(bench.num_threads), recorder:
        replay_errors(bench.float_denoiser, trajectory.path, trajectory.notes)
    return recorder.statistics()


@torch.no_grad()
def _layer_error(
    exact: nn.Module,
    quantized: nn.Module,
    inputs: Mapping[str, LayerStatistics],
    names: Sequence[str],
) -> float:
    linears = linear_layers(exact)
    logs = []
    for name in names:
        if name not in linears:
            continue
        x_TI, weight = inputs[name].sample_TI, linears[name].weight
        y_TO = F.linear(x_TI, weight)
        found_TO = quantized.get_submodule(name)(x_TI)
        bias = linears[name].bias
        error_TO = found_TO - y_TO - (0 if bias is None else bias)
        logs.append(math.log(float(error_TO.square().sum() / y_TO.square().sum())))
    return math.exp(sum(logs) / len(logs))


def ratios(outcomes: Sequence[Outcome]) -> list[dict[str, str | float | int]]:
    """Per bits, recipe and pair of arms: the two errors' ratios with intervals over seeds."""
    rows: list[dict[str, str | float | int]] = []
    for bits, recipe in dict.fromkeys((o.bits, o.recipe) for o in outcomes):
        by_arm: dict[str, dict[int, Outcome]] = {}
        for o in outcomes:
            if (o.bits, o.recipe) == (bits, recipe):
                by_arm.setdefault(o.arm, {})[o.seed] = o
        for arm, base in PAIRS:
            row: dict[str, str | float | int] = {"bits": bits, "recipe": recipe}
            row |= {"boundaries": arm, "against": base, "seeds": len(by_arm[arm])}
            for name in ERRORS:
                logs = [
                    math.log(getattr(o, name) / getattr(by_arm[base][seed], name))
                    for seed, o in by_arm[arm].items()
                ]
                found = mean_over_runs(logs)
                row |= {name: math.exp(found.value)}
                row |= {f"{name}_low": math.exp(found.low), f"{name}_high": math.exp(found.high)}
            rows.append(row)
    return rows


def to_markdown(rows: Sequence[Mapping[str, str | float | int]], *, command: str) -> str:
    """The table; a ratio whose interval lies below 1 is bold."""
    lines = [
        f"SegLinear's boundaries, {rows[0]['seeds']} calibration seeds (`{command}`). Each number "
        "is a ratio of errors, below 1 where the first boundaries are better: geometric mean over "
        "seeds, [95 % interval, Student's t]; bold where the interval lies below 1.",
        "",
        "| bits | recipe | boundaries | layer error | step error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        compared = f"{row['boundaries']} / {row['against']}"
        cells = [str(row["bits"]), str(row["recipe"]), compared]
        cells += [_ratio(row, name) for name in ERRORS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(row: Mapping[str, str | float | int], name: str) -> str:
    text = f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return f"**{text}**" if float(row[f"{name}_high"]) < 1 else text


def _to_csv(outcomes: Sequence[Outcome]) -> str:
    stream = io.StringIO()
    names = list(vars(outcomes[0]))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(outcome) for outcome in outcomes)
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.boundaries")
    parser.add_argument("--model", default="tiny_mmdit")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--bits", nargs="+", default=list(BITS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", help="more of a run's key=value settings")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    store = Store(given.store)
    store.prepare()
    outcomes: list[Outcome] = []
    for seed in range(given.seeds):
        outcomes += outcomes_of_seed(
            seed, model=given.model, overrides=given.overrides, bits=given.bits, store=store
        )
    name = "boundaries" if given.model == "tiny_mmdit" else f"boundaries_{given.model}"
    command = "python -m experiments.boundaries"
    if given.model != "tiny_mmdit":
        command += f" --model {given.model}"
    write_text(given.out / f"{name}.md", to_markdown(ratios(outcomes), command=command))
    write_text(given.out / f"{name}.csv", _to_csv(outcomes))


if __name__ == "__main__":
    main()
