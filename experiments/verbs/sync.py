"""`segbench sync`: pushes the offline W&B runs below `out`."""

from __future__ import annotations

import argparse
import sys

from evaluation.report.offline_runs import sync_runs
from experiments.verbs.answer import Answer
from experiments.verbs.words import store_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    root = store_root(options)
    pushed = sync_runs(root)
    bad = [run for run in pushed if run.error]
    for failure in bad:
        sys.stderr.write(f"{failure.folder}: {failure.error}\n")
    text = f"{len(pushed) - len(bad)} runs pushed, {len(bad)} failed"
    data = [{"folder": str(run.folder), "error": run.error} for run in pushed]
    return Answer(text, data, failed=bool(bad))
