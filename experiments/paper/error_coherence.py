"""Whether the errors of a denoiser's steps add up: why rows of one step error differ in PSNR.

On the reference's own trajectory, with e_t = q_t - r_t over its T calls, per prompt:
gain <q_t, r_t> / ||r_t||^2, mean over calls; coherence ||sum_t e_t||^2 / sum_t ||e_t||^2, which is
1 if the errors of two calls have nothing in common and T if they are alike; drift
||sum_t e_t||^2 / ||sum_t r_t||^2. Sums over calls have equal weights: a sampler's own are close to
that where its times are evenly spaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, measure_cells, over_draws, text_table
from experiments.sampling.threads import threads
from experiments.sampling.trajectory import by_prompt, said_beside

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.cell import Cell
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup

_HEAD = (
    *("model", "method", "bits", "draw", "prompt", "calls"),
    *("error", "gain", "coherence", "drift"),
)
_SCALES = {"error": 100, "gain": 1, "coherence": 1, "drift": 100}
_TITLES = ("Model", "Bits", "Method", "Step error %", "Gain", "Coherence", "Drift %")
_LEGEND = (
    "Mean over prompts, then over calibration draws, [95 % interval, Student's t]; every call gets "
    "the reference's latents.",
    "Step error %: ||q-r||^2/||r||^2, mean over calls.",
    "Gain: <q,r>/||r||^2, mean over calls; below 1 the output is shrunk.",
    "Coherence: the energy of the errors' sum over the sum of their energies; 1: errors of two "
    "calls have nothing in common; as many as there are calls: they are alike, and add up.",
    "Drift %: the energy of the errors' sum over that of the reference's outputs' sum.",
)


def measure(sweep: Sweep) -> Measured:
    """Runs the quantized denoisers of the store on the reference's calls."""
    measured = Measured(head=_HEAD)

    def measure_one(cell: Cell, said: dict[str, Any]) -> None:
        _measure(cell, said, measured)

    return measure_cells(sweep, measured, measure=measure_one)


def _measure(cell: Cell, said: Mapping[str, Any], measured: Measured) -> None:
    stage = cell.step_errors
    if stage is None or cell.quantized is None or cell.quantized.find() is None:
        raise UserError("no quantized denoiser in the store")
    trajectory = stage.trajectory.find()
    if trajectory is None:
        raise UserError("no trajectory of the reference in the store")
    model = cell.around.model
    module = cell.around.loaded(cell.denoiser).module
    assert module is not None
    numbers = itertools.count()
    with threads(stage.num_threads), model.placed(module) as denoiser:
        for prompts, calls in said_beside(
            denoiser, trajectory.path, trajectory.notes, device=model.device
        ):
            given, exact = zip(
                *((_by_prompt(own, prompts), _by_prompt(theirs, prompts)) for own, theirs in calls),
                strict=True,
            )
            for values in summed(torch.stack(given), torch.stack(exact)):
                measured.add(**said, prompt=next(numbers), calls=len(given), **values)


def _by_prompt(outputs: Sequence[Tensor], prompts: int) -> Tensor:
    """All that a call says of each prompt: [N, F] in float64."""
    return torch.cat([by_prompt(x.detach().cpu().double(), prompts) for x in outputs], 1)


def summed(given_TNF: Tensor, exact_TNF: Tensor) -> list[dict[str, float]]:
    """`error`, `gain`, `coherence` and `drift` of each prompt; float64 [T, N, F] each.

    An output without any error is coherent by 0.
    """
    wrong_TNF = given_TNF - exact_TNF
    power_TN, energy_TN = exact_TNF.square().sum(2), wrong_TNF.square().sum(2)
    energy_N, together_N = energy_TN.sum(0), wrong_TNF.sum(0).square().sum(1)
    found = {
        "error": (energy_TN / power_TN).mean(0),
        "gain": ((given_TNF * exact_TNF).sum(2) / power_TN).mean(0),
        "coherence": torch.where(energy_N > 0, together_N / energy_N, torch.zeros_like(energy_N)),
        "drift": together_N / exact_TNF.sum(0).square().sum(1),
    }
    rows = zip(*(values.tolist() for values in found.values()), strict=True)
    return [dict(zip(found, row, strict=True)) for row in rows]


def _shown(own: Sequence[Mapping[str, Any]], name: str, scale: int) -> str:
    """The mean over prompts of each draw, then over draws."""
    by_draw: dict[Any, list[float]] = {}
    for row in own:
        by_draw.setdefault(row["draw"], []).append(scale * float(row[name]))
    return over_draws([sum(values) / len(values) for values in by_draw.values()])


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for key in dict.fromkeys((r["model"], r["bits"], r["method"]) for r in measured.there):
        own = [r for r in measured.there if (r["model"], r["bits"], r["method"]) == key]
        body.append(
            [*map(str, key), *(_shown(own, name, scale) for name, scale in _SCALES.items())]
        )
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: whether the errors of a denoiser's calls add up.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )
