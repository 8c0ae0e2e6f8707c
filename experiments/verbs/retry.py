"""`segbench retry`: the cells that failed again, and no others."""

from __future__ import annotations

import argparse

from experiments.cell.mirror import run_mirrored
from experiments.cell.sweep import Sweep
from experiments.cluster.states import FAILED, states_of
from experiments.verbs.answer import Answer
from experiments.verbs.jobs import report_states, run_as_jobs
from experiments.verbs.words import add_follow, add_multirun, named_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_multirun(parser)
    add_follow(parser)


def run(options: argparse.Namespace) -> Answer:
    sweep = named_sweep(options.overrides)
    sweep.check()
    wanted = {state.run_id for state in states_of(sweep) if state.state in FAILED}
    if not wanted:
        return Answer("nothing failed", [])
    if sweep.config.cluster.jobs is None:
        return _retry_here(sweep, wanted)
    return run_as_jobs(sweep, options.follow, only=wanted)


def _retry_here(sweep: Sweep, wanted: set[str]) -> Answer:
    for cell in sweep.cells:
        if cell.run_id not in wanted:
            continue
        sweep.progress.cell(cell.label)
        record, _ = run_mirrored(cell)
        reason = f": {record.reason}" if record.reason else ""
        sweep.progress.note(f"{cell.label}: {record.status}{reason}")
    return report_states(sweep, states_of(sweep))
