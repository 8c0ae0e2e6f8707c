"""How far a calibration draw moves a row, against how far methods lie apart.

From the records of one setting under several draws: the mean of each row, how much of it is the
draw, and in how many draws it is the best.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, over_draws, said_of, text_table

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup

_HEAD = ("model", "method", "bits", "draw", "metric", "better", "value")
_METRICS = {"step_error": "lower", "psnr": "higher"}
_SHOWN = {"step_error": ("step error %", 100.0), "psnr": ("PSNR dB", 1.0)}
_TITLES = (
    *("Model", "Bits", "Method", "Metric", "Mean", "Lowest to highest draw"),
    *("SD of draws", "SD of methods' means", "Best in"),
)
_LEGEND = (
    "Mean over calibration draws, [95 % interval, Student's t]; each draw's number is of the same "
    "evaluation prompts.",
    "SD of draws: between this row's draws; SD of methods' means: between the rows of its model "
    "and bits. A draw matters where the first is no small part of the second.",
    "Best in: draws in which no other method of the model and bits is better.",
)


def measure(sweep: Sweep) -> Measured:
    """A cell without a finished record is a missing row."""
    measured = Measured(head=_HEAD)
    for cell in sweep.cells:
        said = said_of(cell)
        try:
            record = cell.read_record()
        except UserError as error:
            measured.add(**said, missing=" ".join(str(error).split()))
            continue
        if record is None or record.status != "ok":
            why = "no record in the store" if record is None else record.status
            measured.add(**said, missing=why)
            continue
        for metric, better in _METRICS.items():
            found = record.metrics.get(metric)
            if found is None or found.value is None:
                measured.add(**said, metric=metric, missing=f"no {metric} in the record")
                continue
            measured.add(**said, metric=metric, better=better, value=found.value)
    return measured


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for model, bits, metric in dict.fromkeys(
        (r["model"], r["bits"], r["metric"]) for r in measured.there
    ):
        own = [
            r
            for r in measured.there
            if (r["model"], r["bits"], r["metric"]) == (model, bits, metric)
        ]
        title, scale = _SHOWN.get(str(metric), (str(metric), 1.0))
        by_method: dict[str, dict[str, float]] = {}
        for row in own:
            by_method.setdefault(row["method"], {})[str(row["draw"])] = scale * float(row["value"])
        best = max if own[0]["better"] == "higher" else min
        draws = sorted({draw for values in by_method.values() for draw in values})
        winners = [
            best((v[draw], method) for method, v in by_method.items() if draw in v)[1]
            for draw in draws
        ]
        means = [statistics.fmean(values.values()) for values in by_method.values()]
        between = f"{statistics.stdev(means):.3g}" if len(means) > 1 else ""
        for method, values in by_method.items():
            numbers = list(values.values())
            within = f"{statistics.stdev(numbers):.3g}" if len(numbers) > 1 else ""
            body.append(
                [
                    *(str(model), str(bits), str(method), title, over_draws(numbers)),
                    f"{min(numbers):.4g} to {max(numbers):.4g}",
                    *(within, between, f"{winners.count(method)} of {len(draws)}"),
                ]
            )
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: what a calibration draw moves, and what a method does.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )
