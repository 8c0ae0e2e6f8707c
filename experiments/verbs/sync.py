"""`segbench sync`: pushes the offline W&B runs below `out`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evaluation.report.tracking import sync_runs
from experiments.errors import UserError
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    given = dict(item.partition("=")[::2] for item in options.overrides)
    if set(given) - {"out"}:
        raise UserError("sync takes out=FOLDER and nothing else; the default is out=runs")
    root = Path(given.get("out", "runs"))
    if not root.is_dir():
        raise UserError(f"out={root}: no such folder")
    pushed = sync_runs(root)
    bad = [run for run in pushed if run.error]
    for failure in bad:
        sys.stderr.write(f"{failure.folder}: {failure.error}\n")
    text = f"{len(pushed) - len(bad)} runs pushed, {len(bad)} failed"
    data = [{"folder": str(run.folder), "error": run.error} for run in pushed]
    return Answer(text, data, failed=bool(bad))
