"""`segbench compare EXPERIMENT --against METHOD`: a sweep's rows held against one method's.

`segbench compare A B`: two folders of images or pipelines, in `compare_folders`.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from evaluation.metrics.metric_catalogue import shown
from evaluation.report.comparison import (
    Compared,
    Reason,
    Verdict,
    compare_rows,
    comparison_table,
    unexplained,
    without_baseline,
)
from evaluation.report.figures import Tile, ratio_map
from evaluation.report.render import FORMATS
from experiments.errors import UserError
from experiments.store.folders import write_text
from experiments.verbs import compare_folders
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import ReportFolder, scored, tell_outdated
from experiments.verbs.words import add_recorded, no_record, recorded_sweep

_AGAINST = "rtn"
_REASON_FIELDS = ("reason", "methods", "models", "bits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recorded(parser, metavar="A B|EXPERIMENT|key=value")
    parser.add_argument("--against", metavar="METHOD", help=f"of a sweep; default: {_AGAINST}")
    parser.add_argument("--format", choices=tuple(FORMATS), default="md")
    parser.add_argument(
        "--reasons", type=Path, metavar="FILE", help="YAML; a worse row without a reason is exit 1"
    )
    compare_folders.add_arguments(parser)


def run(options: argparse.Namespace) -> Answer:
    """Two things, or a sweep.

    Raises:
        UserError: nothing to compare, or options of the one with the other.
    """
    others = [word for word in options.overrides if "=" not in word or Path(word).is_dir()]
    if others:
        if len(others) > 1:
            raise UserError(f"compare takes two, A and B; got {len(others) + 1}")
        if options.against or options.reasons or options.multirun:
            raise UserError("--against, --reasons and -m are of a sweep; A and B are two folders")
        words = [word for word in options.overrides if word not in others]
        return compare_folders.compare_two(options, b=others[0], words=words)
    if given := compare_folders.own_options(options):
        raise UserError(
            f"{', '.join(given)}: of two folders, segbench compare A B; "
            f"{options.experiment} is one thing"
        )
    return _compare_sweep(options)


def _compare_sweep(options: argparse.Namespace) -> Answer:
    """Reads the sweep's records and writes `compare_METHOD.*` beside its table."""
    reasons = [] if options.reasons is None else read_reasons(options.reasons)
    sweep, against = recorded_sweep(options), options.against or _AGAINST
    cells = scored(sweep)
    if not cells:
        raise no_record(sweep)
    words = shown(sweep.cells[0].around.metrics)
    try:
        rows = compare_rows(cells, against=against, seed=sweep.config.seed, descriptions=words)
    except ValueError as error:
        raise UserError(f"--against {against}: {error}") from error
    table = comparison_table(
        rows,
        against=against,
        reasons=reasons,
        title=sweep.name,
        descriptions=words,
        alone=without_baseline(cells, against=against),
    )
    folder = ReportFolder(sweep)
    _draw(rows, against=against, folder=folder, title=sweep.name)
    tell_outdated(sweep)
    for suffix, render in FORMATS.items():
        write = functools.partial(write_text, text=render(table))
        folder.put(f"compare_{against}.{suffix}", write)
    sys.stderr.write("".join(f"wrote {path}\n" for path in folder.files))
    bare = [] if options.reasons is None else unexplained(rows, reasons=reasons)
    for row in bare:
        names = f"{row.record.model} {row.record.method_label} {row.record.bits_label}"
        sys.stderr.write(f"worse than {against}, and no reason given: {names}\n")
    return Answer(FORMATS[options.format](table), [_plain(row) for row in rows], failed=bool(bare))


def _draw(rows: Sequence[Compared], *, against: str, folder: ReportFolder, title: str) -> None:
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
        words = f"{title}, {model}: step error over {against}'s (grey: not told apart)"
        picture = f"compare_{against}_{model}.png"
        folder.put(picture, functools.partial(_write_map, tiles=tiles, title=words))


def _write_map(path: Path, *, tiles: Sequence[Tile], title: str) -> None:
    ratio_map(tiles, title=title, out_path=path)


def read_reasons(path: Path) -> list[Reason]:
    """A YAML list of `reason`, `methods` and, if not for all, `models` and `bits`.

    Raises:
        UserError: the file is not there or is no such list.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--reasons {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, list):
        raise UserError(f"--reasons {path}: not a list; see experiments/results/baselines")
    reasons = []
    for number, item in enumerate(content, 1):
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
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def _plain(row: Compared) -> dict[str, Any]:
    return {
        "model": row.record.model,
        "bits": row.record.bits_label,
        "method": row.record.method_label,
        "verdict": None if row.verdict is None else row.verdict.value,
        "calibration_draws": row.draws,
        "seed": row.record.seed,
        "identical": row.identical,
        "p_adjusted": row.adjusted,
        "layer_error_ratio": row.layer_ratio,
        "step_error_ratio": None if row.ratio is None else vars(row.ratio),
        "differences": {name: vars(difference) for name, difference in row.differences.items()},
    }
