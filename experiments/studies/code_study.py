"""How wrong each activation code is on real activations, against the products it costs.

    python -m experiments.studies.code_study --models tiny_mmdit tiny_flux tiny_unet

writes `experiments/results/activation_codes.md` and, layer by layer, `activation_codes.csv`. For
any other model: `--models folder model.path=FOLDER_OR_HUB_ID` with as many prompts as it allows.
What is measured, and how: `code_errors`.

Legend: P prompts, C codings, U units (an interval of a layer).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.report.markdown import pipe_table
from evaluation.statistics import mean_estimate
from experiments.config.compose import build, compose_config
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS
from experiments.studies.code_errors import CODINGS, OTHER, PRODUCERS, Unit, measure
from experiments.studies.csv_text import csv_text
from segquant.kernels import ActivationCode
from segquant.kernels.auto import Coding

log = logging.getLogger(__name__)

WRITTEN = RESULTS / "activation_codes.md"
NAMES = ("tiny_mmdit", "tiny_flux", "tiny_unet")
# What the synthetic study claims, tested here: numerator and denominator of a ratio of errors.
RATIOS = (("dual", "zero_point"), ("dual", "high_low"), ("dual", "dual_wide"), ("fp8", "dual"))


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
    for kind in (*PRODUCERS.values(), OTHER):
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


def _interval(values_P: NDArray[np.float64]) -> str:
    mean = mean_estimate(values_P, seed=0)
    return f"{mean.value:.3g} [{mean.low:.3g}, {mean.high:.3g}]"


def markdown(rows: Sequence[Row], *, command: str, prompts: int, per_call: int) -> str:
    """The study as committed."""
    static, token = CODINGS[: len(ActivationCode)], CODINGS[len(ActivationCode) :]
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
        _table(rows, _with_products(static), [row.errors[: len(static)] for row in rows]),
        "",
        "Lowest to highest layer:",
        "",
        _table(rows, [c.code.name for c in static], [row.spread[: len(static)] for row in rows]),
        "",
        "## Steps by token, percent",
        "",
        _table(rows, _with_products(token), [row.errors[len(static) :] for row in rows]),
        "",
        "## Ratios of static errors (geometric mean over layers)",
        "",
        _table(
            rows,
            [f"{above} / {below}" for above, below in RATIOS],
            [row.ratios for row in rows],
        ),
    ]
    return "\n".join(lines) + "\n"


def _with_products(codings: Sequence[Coding]) -> list[str]:
    return [f"{coding.code.name} ({coding.code.planes}x)" for coding in codings]


def _table(rows: Sequence[Row], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """What every table begins with, then these columns."""
    body = [
        [row.model, row.kind, str(row.units), f"{row.positive:.2f}", *more]
        for row, more in zip(rows, cells, strict=True)
    ]
    numeric = [False, False, True, True, *(False for _ in columns)]
    return pipe_table(["model", "input", "layers", "P(x>0)", *columns], body, numeric=numeric)


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
        units = measure(
            config, prompts=options.prompts, calibration=options.calibration, rows=options.rows
        )
        rows += summarize(config.model.name, units)
        layers += per_layer(config.model.name, units)
        log.info("%s: %d inputs", config.model.name, len(units))
    given = " ".join(["--models", *models, *overrides])
    command = f"python -m experiments.studies.code_study {given} --prompts {options.prompts}"
    text = markdown(rows, command=command, prompts=options.prompts, per_call=options.rows)
    write_text(options.out, text)
    write_text(options.out.with_suffix(".csv"), csv_text(CSV_HEAD, layers))


if __name__ == "__main__":
    main()
