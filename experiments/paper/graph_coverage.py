"""How many Linears SegLinear and DualScale concern: the paper's Table 7, from the graph alone.

At full size and without weights where the zoo has the model's configs, else of the model's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.paper.studies_of_stages import Measured, text_table
from experiments.store.paths import resolve_path
from experiments.zoo.inspection import inspect_denoiser
from experiments.zoo.published import PUBLISHED

if TYPE_CHECKING:
    from evaluation.report.tables import Table
    from experiments.cell.surroundings import Surroundings
    from experiments.cell.sweep import Sweep
    from experiments.paper.joined_table import Asked
    from experiments.paper.paper_setup import PaperSetup
    from segquant.graph import LayerGraph

_HEAD = ("model", "linears", "segmented_output", "segmented_input", "one_sided", "any")
_SCALE_BYTES = 4
_TITLES = (
    *("Model", "Linears", "Output segments", "Input segments", "DualScale", "DualScale share"),
    *("Either", "Second scales, bytes", "Share, paper", "Memory MiB, paper"),
)
_LEGEND = (
    "Output, input segments: Linears with two or more of them; DualScale: Linears of which an "
    "interval of the input is bounded on one side, as behind SiLU or GELU.",
    "Second scales: a float32 for each Linear with DualScale under static per-tensor ranges; what "
    "the paper counts as its memory is in no note.",
    "Paper: from the lowest to the highest of its models.",
)


def measure(sweep: Sweep) -> Measured:
    """Traces graphs; loads no weights but those of folders that have no configs here."""
    measured = Measured(head=_HEAD)
    for group in sweep.groups():
        model = group[0].names[0]
        try:
            graph = _graph(group[0].config, group[0].around)
        except UserError as error:
            measured.add(model=model, missing=" ".join(str(error).split()))
            continue
        linears = [layer for layer in graph.values() if layer.kind == "linear"]
        outputs = [len(layer.output_segments) > 1 for layer in linears]
        inputs = [len(layer.input_segments) > 1 for layer in linears]
        one_sided = [any(part.one_sided for part in layer.input_segments) for layer in linears]
        measured.add(
            model=model,
            linears=len(linears),
            segmented_output=sum(outputs),
            segmented_input=sum(inputs),
            one_sided=sum(one_sided),
            any=sum(map(any, zip(outputs, inputs, one_sided, strict=True))),
        )
        group[0].around.release()
    return measured


def _graph(config: RunConfig, around: Surroundings) -> LayerGraph:
    name = config.model.name
    if name in PUBLISHED and not resolve_path(config.model.path).exists():
        return inspect_denoiser(next(iter(PUBLISHED[name].denoisers.values())))
    return around.graph


def table(measured: Measured, *, asked: Asked, setup: PaperSetup) -> Table:
    rows = () if setup.table is None else setup.table.rows
    said = []
    for column in ("dual_share", "extra_mib"):
        values = [f"{row.values[column]:g}" for row in rows if row.values[column] is not None]
        said.append(f"{' to '.join(values)} unverified" if values else "")
    body = []
    for row in measured.there:
        total, dual = int(row["linears"]), int(row["one_sided"])
        numbers = [total, int(row["segmented_output"]), int(row["segmented_input"]), dual]
        body.append(
            [
                str(row["model"]),
                *map(str, numbers),
                f"{dual / total:.3f}",
                str(row["any"]),
                str(dual * _SCALE_BYTES),
                *said,
            ]
        )
    return text_table(
        _TITLES,
        body,
        caption=f"{asked.name}: Linears that SegLinear and DualScale concern.",
        legend=_LEGEND,
        asked=asked,
        measured=measured,
        run=False,
    )
