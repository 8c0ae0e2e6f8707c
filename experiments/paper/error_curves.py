"""The error of each denoising step: what the paper's Figure 3 shows, on the reference's own way.

From the step errors that cells stored: ||q-r||^2/||r||^2 of the denoiser's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, over_draws, said_of, text_table

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup

_HEAD = ("model", "method", "bits", "draw", "step", "steps", "prompts", "error")
_LEGEND = (
    "Step error, percent, mean over prompts, then over calibration draws, [95 % interval, "
    "Student's t]; every step gets the reference's latents, so errors do not add up. All steps: "
    "measured.csv.",
)


def measure(sweep: Sweep) -> Measured:
    """A cell whose step errors are not in the store is a missing row."""
    measured = Measured(head=_HEAD)
    for cell in sweep.cells:
        said = said_of(cell)
        try:
            finished = None if cell.step_errors is None else cell.step_errors.find()
        except UserError as error:
            measured.add(**said, missing=" ".join(str(error).split()))
            continue
        if finished is None or cell.step_errors is None:
            measured.add(**said, missing="no step errors in the store")
            continue
        errors = list(cell.step_errors.by_prompt(finished).values())
        for step, of_prompts in enumerate(zip(*errors, strict=True), 1):
            mean = sum(of_prompts) / len(of_prompts)
            measured.add(
                **said, step=step, steps=len(errors[0]), prompts=len(of_prompts), error=mean
            )
    return measured


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for key in dict.fromkeys((r["model"], r["bits"], r["method"]) for r in measured.there):
        own = [r for r in measured.there if (r["model"], r["bits"], r["method"]) == key]
        steps = int(own[0]["steps"])
        shown = (1, (steps + 1) // 2, steps)
        by_step = [
            [100 * float(row["error"]) for row in own if int(row["step"]) == step] for step in shown
        ]
        draws = dict.fromkeys(row["draw"] for row in own)
        worst = [
            max((float(r["error"]), int(r["step"])) for r in own if r["draw"] == draw)[1]
            for draw in draws
        ]
        largest = ", ".join(map(str, dict.fromkeys(worst)))
        body.append([*map(str, key), *map(over_draws, by_step), f"{largest} of {steps}"])
    return text_table(
        ("Model", "Bits", "Method", "First step", "Middle step", "Last step", "Largest at"),
        body,
        caption=f"{asked.name}: the error of each denoising step.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )
