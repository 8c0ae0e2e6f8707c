"""`segbench compare EXPERIMENT --against METHOD`: a sweep's rows held against one method's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from evaluation.per_image import read_per_image
from evaluation.records import Record
from evaluation.report.comparison import (
    STEP_ERROR,
    Compared,
    Reason,
    Scored,
    Verdict,
    compare_rows,
    comparison_table,
    unexplained,
)
from evaluation.report.figures import Tile, ratio_map
from evaluation.report.render import FORMATS
from experiments.cell.bench import Bench
from experiments.cell.progress import Progress
from experiments.cell.run_cell import find_record, find_step_errors, record_path
from experiments.cell.sweep import make_benches, no_record
from experiments.config.request import read_recorded
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.store.folders import Store, write_text

_REASON_FIELDS = ("reason", "methods", "models", "bits")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The table in the format asked for, its numbers, and worse rows that no reason covers."""

    text: str
    data: list[dict[str, Any]]
    unexplained: list[Compared]


def compare(options: argparse.Namespace) -> Answer:
    """Reads the sweep's records and writes `compare_METHOD.*` beside its table.

    Raises:
        UserError: nothing to compare, or a file of reasons that is none.
    """
    reasons = [] if options.reasons is None else read_reasons(options.reasons)
    request = read_recorded([options.experiment, *options.overrides])
    store = Store(Path(request.cells[0].out))
    benches = make_benches(request, store, Progress(cells=0, prompts=0))
    scored = []
    for index, cell in enumerate(request.cells):
        record = find_record(benches[index], cell)
        if record is not None and record.status == "ok":
            scored.append(_scored(benches[index], cell, record))
    if not scored:
        raise no_record(request, store)
    try:
        rows = compare_rows(scored, against=options.against, seed=request.cells[0].seed)
    except ValueError as error:
        raise UserError(f"--against {options.against}: {error}") from error
    table = comparison_table(rows, against=options.against, reasons=reasons, title=request.name)
    folder = store.root / "reports" / request.name
    _draw(rows, against=options.against, folder=folder, title=request.name)
    for suffix, render in FORMATS.items():
        path = folder / f"compare_{options.against}.{suffix}"
        write_text(path, render(table))
        sys.stderr.write(f"wrote {path}\n")
    return Answer(
        text=FORMATS[options.format](table),
        data=[_plain(row) for row in rows],
        unexplained=[] if options.reasons is None else unexplained(rows, reasons=reasons),
    )


def _draw(rows: Sequence[Compared], *, against: str, folder: Path, title: str) -> None:
    """One map a model: methods against bits, the ratio of step errors in each tile."""
    for model in dict.fromkeys(row.record.model for row in rows):
        tiles = [
            Tile(
                row=row.record.method_label,
                column=row.record.bits_label,
                value=None if row.ratio is None else row.ratio.value,
                certain=row.verdict in (Verdict.better, Verdict.worse),
            )
            for row in rows
            if row.record.model == model
        ]
        if all(tile.value is None for tile in tiles):
            continue
        path = folder / f"compare_{against}_{model}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ratio_map(
            tiles, title=f"{title}, {model}: step error over {against}'s (grey: not told apart)",
            out_path=path,
        )  # fmt: skip
        sys.stderr.write(f"wrote {path}\n")


def read_reasons(path: Path) -> list[Reason]:
    """A YAML list of `reason`, `methods` and, if not for all, `models` and `bits`.

    Raises:
        UserError: the file is not there or is no such list.
    """
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--reasons {path}: {' '.join(str(error).split())}") from error
    if not isinstance(found, list):
        raise UserError(f"--reasons {path}: not a list; see experiments/results/baselines")
    reasons = []
    for number, item in enumerate(found, 1):
        given = set(item) if isinstance(item, dict) else set()
        if not {"reason", "methods"} <= given <= set(_REASON_FIELDS):
            raise UserError(
                f"--reasons {path}: entry {number} has {sorted(given) or item!r}; it needs reason "
                "and methods, and may have models and bits"
            )
        lists = {key: _names(value) for key, value in item.items() if key != "reason"}
        reasons.append(Reason(reason=" ".join(str(item["reason"]).split()), **lists))
    return reasons


def _names(value: Any) -> Sequence[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _scored(bench: Bench, cell: RunConfig, record: Record) -> Scored:
    ids, columns = read_per_image(record_path(bench, cell).parent / "per_image.csv")
    scores = {name: dict(zip(ids, values, strict=True)) for name, values in columns.items()}
    errors_NT = find_step_errors(bench, cell)
    if errors_NT is not None:
        means = errors_NT.double().mean(1).tolist()
        scores[STEP_ERROR] = dict(zip(ids, means, strict=False))  # the first prompts
    return Scored(record=record, scores=scores)


def _plain(row: Compared) -> dict[str, Any]:
    return {
        "model": row.record.model,
        "bits": row.record.bits_label,
        "method": row.record.method_label,
        "verdict": None if row.verdict is None else row.verdict.value,
        "p_adjusted": row.adjusted,
        "layer_error_ratio": row.layer_ratio,
        "step_error_ratio": None if row.ratio is None else vars(row.ratio),
        "differences": {name: vars(one) for name, one in row.differences.items()},
    }
