"""Arms of one method compared over calibration seeds: what the studies share.

Every calibration seed draws its own calibration prompts; all arms of a seed see the same ones.
Measured on inputs that no calibration saw:

- layer error: ||Y - Y_quantized||^2 / ||Y||^2 of each layer in question, on the unquantized model's
  own inputs for evaluation prompts; the geometric mean over layers;
- step error: of the whole denoiser, on the same trajectory.

Arms are compared within a seed, as ratios: their geometric mean over seeds and Student's 95 %
interval.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from evaluation.statistics import mean_over_runs
from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.sweep import union_of_needs
from experiments.config.compose import build, compose_config
from experiments.config.run_config import RunConfig
from experiments.sampling.generate import replay_errors
from experiments.sampling.machine import threads
from experiments.store.folders import Store, write_text
from experiments.store.paths import RESULTS
from segquant.core.checkpoint import load_quantized
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder, linear_layers

log = logging.getLogger(__name__)

ERRORS = ("layer_error", "step_error")
Ratio = dict[str, str | float | int]
_HELD_OUT_ROWS = 512
_SEED = "{seed}"  # in an override: the calibration seed


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its settings; `{seed}` in one is the calibration seed."""

    method: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared: arms by name, under each recipe (settings that all arms of it share)."""

    name: str  # of its files and of its module in experiments/
    title: str
    recipes: Mapping[str, tuple[str, ...]]
    arms: Mapping[str, Arm]
    pairs: tuple[tuple[str, str], ...]  # an arm, and the one that it is divided by
    bits: tuple[str, ...]
    model: str = "tiny_mmdit"
    concerned: Callable[[Bench, str], bool] = lambda bench, name: True  # which layers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One arm under one recipe and calibration seed."""

    bits: str
    recipe: str
    arm: str
    seed: int
    layer_error: float
    step_error: float


def run_seed(
    study: Study, seed: int, *, bits: Sequence[str], overrides: Sequence[str], store: Store
) -> list[Outcome]:
    """All arms of one calibration seed."""
    found = []
    for recipe, settings in study.recipes.items():

        def cell(
            arm: Arm, width: str, *more: str, settings: tuple[str, ...] = settings
        ) -> RunConfig:
            line = [
                *(f"model={study.model}", f"method={arm.method}", f"bits={width}"),
                *(f"dataset.calibration_seed={seed}", *settings, *arm.settings, *overrides, *more),
            ]
            node = compose_config([item.replace(_SEED, str(seed)) for item in line])
            return build(node, method_name=arm.method)

        cells = {
            (width, name): cell(arm, width) for width in bits for name, arm in study.arms.items()
        }
        bench = Bench(
            config=next(iter(cells.values())),
            store=store,
            progress=Progress(cells=1, prompts=0),
            needs=union_of_needs(list(cells.values())),
        )
        held_out = _held_out(bench)
        layers = {name: seen for name, seen in held_out.items() if study.concerned(bench, name)}
        for (width, arm), config in cells.items():
            layer_error, step_error = _errors(bench, config, layers)
            found.append(
                Outcome(
                    bits=width,
                    recipe=recipe,
                    arm=arm,
                    seed=seed,
                    layer_error=layer_error,
                    step_error=step_error,
                )
            )
            log.info("%s", found[-1])
    return found


def _errors(
    bench: Bench, config: RunConfig, layers: Mapping[str, LayerStatistics]
) -> tuple[float, float]:
    stage = bench.quantized(config)
    denoiser, _ = load_quantized(copy.deepcopy(bench.float_denoiser), stage.path / "denoiser")
    steps = bench.step_errors(denoiser, stage.hash, floor=None)
    assert steps is not None
    return _layer_error(bench.float_denoiser, denoiser, layers), float(steps.mean())


def _held_out(bench: Bench) -> dict[str, LayerStatistics]:
    """Inputs of every Linear on the unquantized model's way through evaluation prompts."""
    trajectory = bench.trajectory()
    if trajectory is None:
        raise ValueError("metrics.teacher_forced_prompts=0; a study needs at least one")
    recorder = StatisticsRecorder(bench.float_denoiser, gram=False, sample_rows=_HELD_OUT_ROWS)
    with threads(bench.num_threads), recorder:
        replay_errors(bench.float_denoiser, trajectory.path, trajectory.notes)
    return recorder.statistics()


@torch.no_grad()
def _layer_error(
    exact: nn.Module, quantized: nn.Module, layers: Mapping[str, LayerStatistics]
) -> float:
    """Geometric mean of the layers' relative errors. No smoothing may be folded: it would be
    missing from a layer that is called alone."""
    linears = linear_layers(exact)
    logs = []
    for name, seen in layers.items():
        linear = linears[name]
        y_TO = F.linear(seen.sample_TI, linear.weight)
        error_TO = quantized.get_submodule(name)(seen.sample_TI) - y_TO
        if linear.bias is not None:
            error_TO = error_TO - linear.bias
        logs.append(math.log(float(error_TO.square().sum() / y_TO.square().sum())))
    return math.exp(sum(logs) / len(logs))


def ratios(outcomes: Sequence[Outcome], *, pairs: Sequence[tuple[str, str]]) -> list[Ratio]:
    """Per bits, recipe and pair of arms: the two errors' ratios with intervals over seeds."""
    rows: list[Ratio] = []
    for bits, recipe in dict.fromkeys((o.bits, o.recipe) for o in outcomes):
        by_arm: dict[str, dict[int, Outcome]] = {}
        for o in outcomes:
            if (o.bits, o.recipe) == (bits, recipe):
                by_arm.setdefault(o.arm, {})[o.seed] = o
        for arm, base in pairs:
            row: Ratio = {"bits": bits, "recipe": recipe, "arm": arm, "against": base}
            row["seeds"] = len(by_arm[arm])
            for name in ERRORS:
                logs = [
                    math.log(getattr(o, name) / getattr(by_arm[base][seed], name))
                    for seed, o in by_arm[arm].items()
                ]
                found = mean_over_runs(logs)
                row[name] = math.exp(found.value)
                row |= {f"{name}_low": math.exp(found.low), f"{name}_high": math.exp(found.high)}
            rows.append(row)
    return rows


def to_markdown(rows: Sequence[Ratio], *, title: str, command: str) -> str:
    """The table; a ratio whose interval lies below 1 is bold."""
    lines = [
        f"{title}: {rows[0]['seeds']} calibration seeds (`{command}`). Each number is a ratio of "
        "errors on inputs that no calibration saw, below 1 where the first arm is better: "
        "geometric mean over seeds, [95 % interval, Student's t]; bold where it lies below 1.",
        "",
        "| bits | recipe | compared | layer error | step error |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [str(row["bits"]), str(row["recipe"]), f"{row['arm']} / {row['against']}"]
        cells += [_ratio(row, name) for name in ERRORS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(row: Ratio, name: str) -> str:
    text = f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
    return f"**{text}**" if float(row[f"{name}_high"]) < 1 else text


def to_csv(outcomes: Sequence[Outcome]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [f.name for f in fields(Outcome)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(outcome) for outcome in outcomes)
    return stream.getvalue()


def read_csv(path: Path) -> list[Outcome]:
    """What `to_csv` wrote."""
    kinds = {"seed": int, "layer_error": float, "step_error": float}
    with path.open() as stream:
        return [
            Outcome(**{key: kinds.get(key, str)(value) for key, value in row.items()})
            for row in csv.DictReader(stream)
        ]


def command_of(study: Study) -> str:
    return f"python -m experiments.studies.{study.name}"


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Runs a study and writes `<name>.md` and `<name>.csv`."""
    parser = argparse.ArgumentParser(prog=command_of(study))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--bits", nargs="+", default=list(study.bits))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", help="more of a run's key=value settings")
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error(f"--seeds {given.seeds}: an interval over seeds needs two or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    store = Store(given.store)
    store.prepare()
    outcomes: list[Outcome] = []
    for seed in range(given.seeds):
        outcomes += run_seed(study, seed, bits=given.bits, overrides=given.overrides, store=store)
    rows = ratios(outcomes, pairs=study.pairs)
    text = to_markdown(rows, title=study.title, command=command_of(study))
    write_text(given.out / f"{study.name}.md", text)
    write_text(given.out / f"{study.name}.csv", to_csv(outcomes))
