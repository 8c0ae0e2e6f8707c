"""Whether the errors of a denoiser's steps add up: why rows of one step error differ in PSNR.

On the reference's own trajectory, with e_t = q_t - r_t over its T calls, per prompt:
gain <q_t, r_t> / ||r_t||^2, mean over calls; coherence ||sum_t e_t||^2 / sum_t ||e_t||^2, which is
1 if the errors of two calls have nothing in common and T if they are alike; drift
||sum_t e_t||^2 / ||sum_t r_t||^2. Sums over calls have equal weights: a sampler's own are close to
that where its times are evenly spaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, over_draws, text_table
from experiments.sampling.threads import threads
from experiments.sampling.trajectory import recorded_calls
from segquant.core.predictions import said_by
from segquant.core.several import part_of_call

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
    for group in sweep.groups():
        for cell in group:
            model, method, bits = cell.names
            draw = cell.config.dataset.calibration_seed
            said = {"model": model, "method": method, "bits": bits, "draw": draw}
            try:
                _measure(cell, said, measured)
            except UserError as error:
                measured.add(**said, missing=" ".join(str(error).split()))
        group[0].around.release()
    return measured


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
    prompt = 0
    with threads(stage.num_threads), model.placed(module) as denoiser, torch.no_grad():
        for described, calls in recorded_calls(
            trajectory.path, trajectory.notes, device=model.device
        ):
            given, exact = [], []
            for arguments, reference in calls:
                outputs = said_by(part_of_call(denoiser, arguments), denoiser(**arguments))
                given.append(_by_prompt(outputs, described["prompts"]))
                exact.append(_by_prompt(reference, described["prompts"]))
            for values in summed(torch.stack(given), torch.stack(exact)):
                measured.add(**said, prompt=prompt, calls=len(given), **values)
                prompt += 1


def _by_prompt(outputs: Sequence[Tensor], prompts: int) -> Tensor:
    """All that a call says of each prompt, guidance among it: [N, F] in float64."""
    parts = [
        x.detach().cpu().double().unflatten(0, (-1, prompts)).transpose(0, 1).flatten(1)
        for x in outputs
    ]
    return torch.cat(parts, 1)


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


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for key in dict.fromkeys((r["model"], r["bits"], r["method"]) for r in measured.there):
        own = [r for r in measured.there if (r["model"], r["bits"], r["method"]) == key]
        draws = dict.fromkeys(r["draw"] for r in own)

        def cell(name: str, times: float = 1, own: Any = own, draws: Any = draws) -> str:
            by_draw = [[times * float(r[name]) for r in own if r["draw"] == draw] for draw in draws]
            return over_draws([sum(values) / len(values) for values in by_draw])

        shown = [cell("error", 100), cell("gain"), cell("coherence"), cell("drift", 100)]
        body.append([*map(str, key), *shown])
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: whether the errors of a denoiser's calls add up.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )
