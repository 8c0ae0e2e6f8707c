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
import csv
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from evaluation.report.markdown import pipe_table
from evaluation.statistics import mean_over_runs
from experiments.cell.cell import Cell
from experiments.cell.progress import Progress
from experiments.cell.surroundings import Surroundings
from experiments.cell.sweep import gather_cells
from experiments.config.compose import build, compose_config
from experiments.config.run_config import RunConfig
from experiments.sampling.threads import threads
from experiments.sampling.trajectory import replay_errors
from experiments.store.folders import Store, write_text
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.plain_linears import linear_layers

log = logging.getLogger(__name__)

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

    name: str  # of its files and of its module in experiments/studies/
    title: str
    recipes: Mapping[str, tuple[str, ...]]
    arms: Mapping[str, Arm]
    pairs: tuple[tuple[str, str], ...]  # an arm, and the one that it is divided by
    bits: tuple[str, ...]
    model: str = "tiny_mmdit"
    concerned: Callable[[Surroundings, str], bool] = lambda around, name: True  # which layers


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One arm under one recipe and calibration seed."""

    bits: str
    recipe: str
    arm: str
    seed: int
    layer_error: float
    step_error: float


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A geometric mean over seeds with its 95 % interval; bold where that lies below 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        text = f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"**{text}**" if self.high < 1 else text


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm's errors over another's, under one recipe."""

    bits: str
    recipe: str
    arm: str
    against: str
    seeds: int
    layer_error: Ratio
    step_error: Ratio


def run_seed(
    study: Study, seed: int, *, bits: Sequence[str], overrides: Sequence[str], store: Store
) -> list[Outcome]:
    """All arms of one calibration seed."""
    outcomes = []
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

        configs = {
            (width, name): cell(arm, width) for width in bits for name, arm in study.arms.items()
        }
        progress = Progress(cells=1, prompts=0)
        cells = gather_cells(list(configs.values()), store=store, progress=progress)
        around = cells[0].around
        held_out = _held_out(cells[0])
        layers = {name: seen for name, seen in held_out.items() if study.concerned(around, name)}
        for (width, arm), measured in zip(configs, cells, strict=True):
            layer_error, step_error = _errors(measured, layers)
            outcomes.append(
                Outcome(
                    bits=width,
                    recipe=recipe,
                    arm=arm,
                    seed=seed,
                    layer_error=layer_error,
                    step_error=step_error,
                )
            )
            log.info("%s", outcomes[-1])
    return outcomes


def _errors(cell: Cell, layers: Mapping[str, LayerStatistics]) -> tuple[float, float]:
    around, errors = cell.around, cell.step_errors
    assert errors is not None
    by_prompt = errors.by_prompt(errors.build())
    quantized = around.loaded(cell.denoiser).module
    assert quantized is not None
    step_error = torch.tensor(list(by_prompt.values()), dtype=torch.float64).mean()
    return _layer_error(around.model.denoiser, quantized, layers), float(step_error)


def _held_out(cell: Cell) -> dict[str, LayerStatistics]:
    """Inputs of every Linear on the unquantized model's way through evaluation prompts."""
    if cell.trajectory is None:
        raise ValueError("metrics.teacher_forced_prompts=0; a study needs at least one")
    trajectory, denoiser = cell.trajectory.build(), cell.around.model.denoiser
    recorder = StatisticsRecorder(denoiser, gram=False, sample_rows=_HELD_OUT_ROWS)
    with threads(cell.around.num_threads), recorder:
        replay_errors(denoiser, trajectory.path, trajectory.notes)
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


def ratios(outcomes: Sequence[Outcome], *, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Per bits, recipe and pair of arms: the two errors' ratios with intervals over seeds."""
    rows = []
    for bits, recipe in dict.fromkeys((o.bits, o.recipe) for o in outcomes):
        by_arm: dict[str, dict[int, Outcome]] = {}
        for outcome in outcomes:
            if (outcome.bits, outcome.recipe) == (bits, recipe):
                by_arm.setdefault(outcome.arm, {})[outcome.seed] = outcome
        for arm, base in pairs:
            matched = [(outcome, by_arm[base][seed]) for seed, outcome in by_arm[arm].items()]
            rows.append(
                Comparison(
                    bits=bits,
                    recipe=recipe,
                    arm=arm,
                    against=base,
                    seeds=len(matched),
                    layer_error=_ratio([o.layer_error / other.layer_error for o, other in matched]),
                    step_error=_ratio([o.step_error / other.step_error for o, other in matched]),
                )
            )
    return rows


def _ratio(over_seeds: Sequence[float]) -> Ratio:
    mean = mean_over_runs([math.log(ratio) for ratio in over_seeds])
    return Ratio(value=math.exp(mean.value), low=math.exp(mean.low), high=math.exp(mean.high))


def to_markdown(rows: Sequence[Comparison], *, title: str, command: str) -> str:
    """The table; a ratio whose interval lies below 1 is bold."""
    body = [
        [
            *(row.bits, row.recipe, f"{row.arm} / {row.against}"),
            *(str(row.layer_error), str(row.step_error)),
        ]
        for row in rows
    ]
    lines = [
        f"{title}: {rows[0].seeds} calibration seeds (`{command}`). Each number is a ratio of "
        "errors on inputs that no calibration saw, below 1 where the first arm is better: "
        "geometric mean over seeds, [95 % interval, Student's t]; bold where it lies below 1.",
        "",
        pipe_table(["bits", "recipe", "compared", "layer error", "step error"], body),
    ]
    return "\n".join(lines) + "\n"


def to_csv(outcomes: Sequence[Outcome]) -> str:
    return csv_text([f.name for f in fields(Outcome)], [astuple(o) for o in outcomes])


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
