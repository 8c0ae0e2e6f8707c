"""From how many calibration prompts does SegQuant's search help?

`python -m experiments.studies.overfit`. For each model and number of calibration prompts: step
error (16 held-out prompts) of rounding to nearest, of SegQuant-A with the published search, and
with `method.held_out=true`; beside them what the published search's record says of itself, from the
calibration alone. One calibration draw: differences of a few percent are none; the study `held_out`
has intervals over draws. Results: `experiments/results/overfit.{md,csv}`.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from evaluation.report.markdown import pipe_table
from experiments.cell.cell import Cell
from experiments.cell.progress import Progress
from experiments.cell.read_quantized import read_quantized
from experiments.cell.sweep import gather_cells
from experiments.config.compose import build, compose_config
from experiments.store.folders import Store, write_text
from experiments.store.paths import RESULTS
from experiments.studies.csv_text import csv_text
from segquant.core.over_fit import over_fit_fields

log = logging.getLogger(__name__)

COMMAND = "python -m experiments.studies.overfit"
MODELS = ("tiny_unet", "tiny_mmdit", "tiny_flux")
PROMPTS = (2, 4, 8, 16)
_ARMS = (("rtn",), ("segquant_a",), ("segquant_a", "method.held_out=true"))
_HEAD = (
    *("model", "prompts", "rtn: step error", "segquant_a / rtn", "held_out=true / rtn"),
    *("held-out / in-sample", "held-out / unsmoothed", "meet at prompts"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model and number of calibration prompts."""

    model: str
    prompts: int
    rtn: float
    published: float
    held_out: float
    held_out_over_in_sample: float  # as the published search's record has it
    held_out_over_unsmoothed: float
    meets_at_prompts: int


def measure(model: str, prompts: int, *, overrides: Sequence[str], store: Store) -> Row:
    """All arms on one calibration."""
    configs = []
    for method, *settings in _ARMS:
        line = [
            *(f"model={model}", f"method={method}", "bits=w8a8_int8", *settings),
            *(f"dataset.calibration_prompts={prompts}", "dataset.evaluation_prompts=16"),
            *("metrics.teacher_forced_prompts=16", *overrides),
        ]
        configs.append(build(compose_config(line), method_name=method))
    cells = gather_cells(configs, store=store, progress=Progress(cells=1, prompts=0))
    rtn, published, held_out = (_step_error(cell) for cell in cells)
    quantized = cells[1].quantized
    assert quantized is not None
    _, report = read_quantized(quantized)
    said = over_fit_fields(report.over_fit, prompts=prompts)["search_over_fit"]
    return Row(
        model=model,
        prompts=prompts,
        rtn=rtn,
        published=published,
        held_out=held_out,
        held_out_over_in_sample=said["held_out_over_in_sample"],
        held_out_over_unsmoothed=said["held_out_over_unsmoothed"],
        meets_at_prompts=said["meets_at_prompts"],
    )


def _step_error(cell: Cell) -> float:
    errors = cell.step_errors
    assert errors is not None
    by_prompt = list(errors.by_prompt(errors.build()).values())
    return float(torch.tensor(by_prompt, dtype=torch.float64).mean())


def to_markdown(rows: Sequence[Row]) -> str:
    """The table and how it is read."""
    body = [
        [
            *(row.model, str(row.prompts), f"{row.rtn:.3g}", f"{row.published / row.rtn:.2f}"),
            *(f"{row.held_out / row.rtn:.2f}", f"{row.held_out_over_in_sample:.2f}"),
            *(f"{row.held_out_over_unsmoothed:.2f}", str(row.meets_at_prompts)),
        ]
        for row in rows
    ]
    lines = [
        f"The search for alpha with few calibration prompts, w8a8_int8, one draw (`{COMMAND}`). "
        "Step errors on 16 prompts that no calibration saw, over rtn's: below 1, smoothing helps. "
        "The last three columns are what the published search's record says of itself, from the "
        "calibration alone: geometric means over layers of the chosen alphas' error by ranges "
        "from other prompts, over that on its own rows and over no smoothing's (above 1: harm), "
        "and the prompts at which the first is estimated to fall to 1.05.",
        "",
        pipe_table(_HEAD, body, numeric=[False, *[True] * (len(_HEAD) - 1)]),
    ]
    return "\n".join(lines) + "\n"


def read_csv(path: Path) -> list[Row]:
    """What `main` wrote."""
    kinds = {"model": str, "prompts": int, "meets_at_prompts": int}
    with path.open() as stream:
        return [
            Row(**{key: kinds.get(key, float)(value) for key, value in row.items()})
            for row in csv.DictReader(stream)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes `overfit.md` and `overfit.csv` after every row."""
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--prompts", nargs="+", type=int, default=list(PROMPTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*", help="more of a run's key=value settings")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    store = Store(given.store)
    store.prepare()
    rows: list[Row] = []
    for model in given.models:
        for prompts in given.prompts:
            rows.append(measure(model, prompts, overrides=given.overrides, store=store))
            log.info("%s", rows[-1])
            write_text(given.out / "overfit.md", to_markdown(rows))
            text = csv_text([field.name for field in fields(Row)], [astuple(row) for row in rows])
            write_text(given.out / "overfit.csv", text)


if __name__ == "__main__":
    main()
