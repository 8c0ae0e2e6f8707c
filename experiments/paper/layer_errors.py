"""The error of the layers that the graph cuts, under each arm: the paper's Tables 3 and 6.

||Y - Y_quantized||_F over a sample of input rows that the calibration of another draw stored (of
the only draw, its own: then the table says so); also relative to ||Y||_F, which layers share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.cell.calibration_pass import calibration_of
from experiments.errors import UserError
from experiments.paper.published_numbers import UNKNOWN
from experiments.paper.studies_of_stages import (
    Measured,
    measure_cells,
    over_draws,
    said_of,
    text_table,
)
from segquant.core.plain_linears import linear_layers

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.cell import Cell
    from experiments.cell.sweep import Sweep
    from experiments.config.run_config import RunConfig
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup
    from experiments.paper.published_numbers import PublishedTable

_HEAD = (
    *("model", "method", "bits", "recipe", "arm", "draw", "inputs", "layer", "segments"),
    *("frobenius", "relative"),
)
WITHOUT, WITH = "without segments", "with segments"
_GRAPH = "graph"
_TITLES = ("Model", "Recipe", "Layers", "Compared", "Ratio, ours", "Ratio, paper")
_LEGEND = (
    "Ratio, ours: of relative errors, geometric mean over the layers that the graph cuts; mean "
    "over calibration draws, [95 % interval, Student's t]; below 1: the first of the two is "
    "better.",
    "Inputs are rows that the calibration of another draw stored; 'own': of the same draw.",
)


def measure(sweep: Sweep) -> Measured:
    """Reads calibrations and quantized denoisers; a stage that is not there is a missing row."""
    measured = Measured(head=_HEAD)

    def measure_one(cell: Cell, said: dict[str, Any]) -> None:
        _measure(cell, _inputs(cell, sweep), said, measured)

    return measure_cells(sweep, measured, measure=measure_one, said=_said)


def _said(cell: Cell) -> dict[str, Any]:
    return {**said_of(cell), "recipe": recipe_of(cell.config), "arm": arm_of(cell.config)}


def recipe_of(config: RunConfig) -> str:
    """In the words of the published tables."""
    method: Any = config.method
    if getattr(method, "rank", 0):
        return "low rank w4a8"
    fixed = getattr(method, "smoothing", None)
    gptq = getattr(getattr(method, "rounding", None), "name", "") == "gptq"
    if gptq and getattr(fixed, "name", "") == "fixed":
        return "gptq at alpha 0.5"
    return "smoothing searched"


def arm_of(config: RunConfig) -> str:
    boundaries = getattr(config.method, "boundaries", None)
    name = getattr(boundaries, "name", str(boundaries))
    if not getattr(config.method, "seg_linear", False):
        return WITHOUT
    return WITH if name == _GRAPH else f"{name} boundaries"


def _inputs(cell: Cell, sweep: Sweep) -> tuple[str, Cell]:
    """The cell whose calibration's rows are the inputs: of another draw where there is one."""
    own = cell.config.dataset.calibration_seed
    for other in sweep.cells:
        draw = other.config.dataset.calibration_seed
        if other.config.model == cell.config.model and draw != own:
            return f"draw {draw}", other
    return "own", cell


def _measure(
    cell: Cell, inputs: tuple[str, Cell], said: Mapping[str, Any], measured: Measured
) -> None:
    label, other = inputs
    calibration = calibration_of(other.around)
    if cell.quantized is None or cell.quantized.find() is None or calibration.find() is None:
        raise UserError("no quantized denoiser or no calibration in the store")
    rows = calibration.read().statistics
    around = cell.around
    exact = linear_layers(around.model.denoiser)
    quantized = around.loaded(cell.denoiser).module
    assert quantized is not None
    for name, layer in around.graph.items():
        count = max(len(layer.output_segments), len(layer.input_segments))
        if count < 2 or name not in rows or name not in exact:
            continue
        error, size = _error(exact[name], quantized.get_submodule(name), rows[name].sample_TI)
        measured.add(
            **said,
            inputs=label,
            layer=name,
            segments=count,
            frobenius=error,
            relative=error / size,
        )


@torch.no_grad()
def _error(exact: torch.nn.Linear, quantized: torch.nn.Module, x_TI: Tensor) -> tuple[float, float]:
    """No smoothing may be folded: it would be missing from a layer that is called alone."""
    x_TI = x_TI.to(exact.weight.dtype)
    y_TO = F.linear(x_TI, exact.weight, exact.bias)
    error = torch.linalg.vector_norm(quantized(x_TI) - y_TO)
    return float(error), float(torch.linalg.vector_norm(y_TO))


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    arms = dict.fromkeys(str(row["arm"]) for row in measured.there)
    for model, bits, recipe in dict.fromkeys(
        (row["model"], row["bits"], row["recipe"]) for row in measured.there
    ):
        key = {"model": model, "bits": bits, "recipe": recipe}
        own = [r for r in measured.there if all(r[name] == value for name, value in key.items())]
        base = WITHOUT if set(arms) <= {WITH, WITHOUT} else WITH
        for arm in arms:
            first = [row for row in own if row["arm"] == arm]
            against = [row for row in own if row["arm"] == base]
            if arm == base or not first or not against:
                continue
            count = len({row["layer"] for row in first})
            paper = _published(setup.table, recipe=str(recipe), arm=arm, base=base)
            compared = f"{arm} / {base}"
            ratios = over_draws(_ratios(first, against))
            body.append([str(model), f"{recipe}, {bits}", str(count), compared, ratios, paper])
    named = "" if setup.table is None else f" Beside {setup.table.paper}, {setup.table.title}."
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: errors of layers that the graph cuts.{named}",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )


def _ratios(
    first: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]
) -> list[float]:
    """By draw: the geometric mean over layers."""
    known = {(row["draw"], row["layer"]): float(row["relative"]) for row in against}
    by_draw: dict[Any, list[float]] = {}
    for row in first:
        key = (row["draw"], row["layer"])
        if key in known:
            by_draw.setdefault(row["draw"], []).append(float(row["relative"]) / known[key])
    return [math.exp(sum(map(math.log, some)) / len(some)) for some in by_draw.values()]


def _published(table: PublishedTable | None, *, recipe: str, arm: str, base: str) -> str:
    """The paper's own ratios, layer by layer, each with how far it may be trusted."""
    if table is None:
        return ""
    unverified = "" if table.verified else " unverified"
    if "boundaries" in next(iter(table.rows)).at:
        values = {str(row.at["boundaries"]): next(iter(row.values.values())) for row in table.rows}
        mine, theirs = values.get(arm.removesuffix(" boundaries")), values.get(_GRAPH)
        return "" if not mine or not theirs else f"{mine / theirs:.3f}{unverified}"
    if (arm, base) != (WITH, WITHOUT):
        return ""
    said = []
    for row in table.rows:
        without, with_seg = row.values.values()
        if row.at.get("recipe", UNKNOWN) == recipe and without and with_seg:
            said.append(f"{with_seg / without:.3f} ({row.at['layer']}){unverified}")
    return "; ".join(said)
