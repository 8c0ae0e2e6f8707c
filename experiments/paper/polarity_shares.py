"""Which sign most values of a channel have, behind SiLU and GELU: the paper's Table 1.

From the rows that the calibration stored. A channel counts as negative where more than half of its
values lie below zero, as positive where more than half lie above; how the paper counts is in no
note, and this is our reading of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.cell.calibration_pass import calibration_of
from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, over_draws, text_table
from experiments.studies.code_errors import PRODUCERS, kind_of

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.surroundings import Surroundings
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup

_HEAD = ("model", "draw", "layer", "input", "channels", "negative", "positive")
_HALF = 0.5
_TITLES = (
    *("Model", "Input", "Layers", "Channels", "Negative, ours", "Positive, ours"),
    *("Negative, paper", "Positive, paper"),
)
_LEGEND = (
    "Negative, positive: share of channels of which more than half of the sampled values lie below "
    "(above) zero, over all layers with such an input; mean over calibration draws, [95 % "
    "interval, Student's t].",
    "Paper: of the AdaNorm and FFN layers of the SD3.5 ControlNet pipeline's transformer, on COCO.",
)


def measure(sweep: Sweep) -> Measured:
    """Reads the calibration of each group of cells; one that is not there is a missing row."""
    measured = Measured(head=_HEAD)
    for group in sweep.groups():
        around = group[0].around
        said = {"model": group[0].names[0], "draw": around.config.dataset.calibration_seed}
        try:
            _measure(around, said, measured)
        except UserError as error:
            measured.add(**said, missing=" ".join(str(error).split()))
        around.release()
    return measured


def _measure(around: Surroundings, said: dict[str, Any], measured: Measured) -> None:
    calibration = calibration_of(around)
    if calibration.find() is None:
        raise UserError("no calibration in the store")
    statistics, graph = calibration.read().statistics, around.graph
    for name, seen in statistics.items():
        start = 0
        for segment in graph[name].input_segments if name in graph else ():
            x_TI = seen.sample_TI[:, start : start + segment.size].float()
            start += segment.size
            kind = kind_of(segment.producer)
            if kind not in PRODUCERS.values() or not len(x_TI):
                continue
            below_I, above_I = (x_TI < 0).float().mean(0), (x_TI > 0).float().mean(0)
            measured.add(
                **said,
                layer=name,
                input=kind,
                channels=segment.size,
                negative=float((below_I > _HALF).float().mean()),
                positive=float((above_I > _HALF).float().mean()),
            )


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    body = []
    for model, kind in dict.fromkeys((row["model"], row["input"]) for row in measured.there):
        own = [r for r in measured.there if (r["model"], r["input"]) == (model, kind)]
        draws = [
            [row for row in own if row["draw"] == draw]
            for draw in dict.fromkeys(row["draw"] for row in own)
        ]
        layers = {row["layer"] for row in own}
        channels = sorted({int(row["channels"]) for row in own})
        ours = [over_draws([_share(rows, sign) for rows in draws]) for sign in _SIGNS]
        theirs = [_published(setup, str(kind), sign) for sign in _SIGNS]
        widths = ", ".join(map(str, channels))
        body.append([str(model), str(kind), str(len(layers)), widths, *ours, *theirs])
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: signs of channels behind an activation.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
    )


_SIGNS = ("negative", "positive")


def _share(rows: list[dict[str, Any]], sign: str) -> float:
    total = sum(int(row["channels"]) for row in rows)
    return sum(float(row[sign]) * int(row["channels"]) for row in rows) / total


def _published(setup: PaperSetup, kind: str, sign: str) -> str:
    for row in () if setup.table is None else setup.table.rows:
        value = row.values.get(sign)
        if row.at.get("where") == "dit" and row.at.get("input") == kind.lower() and value:
            return f"{value:.3f}{'' if row.provenance.verified else ' unverified'}"
    return ""
