"""`segbench status`: where every cell of a sweep stands."""

from __future__ import annotations

import argparse

from experiments.cluster.elsewhere import follow
from experiments.cluster.states import any_failed, render, states_of, tracebacks
from experiments.verbs.answer import Answer
from experiments.verbs.words import add_follow, add_multirun, named_sweep, quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_multirun(parser)
    add_follow(parser)


def run(options: argparse.Namespace) -> Answer:
    """With --follow, when none is in the queue any more."""
    sweep = named_sweep(options.overrides)
    if options.follow and sweep.on_slurm:
        states = follow(sweep, note=quiet().note)
    else:
        states = states_of(sweep)
    text = "\n".join(filter(None, [render(states), tracebacks(states)]))
    data = []
    for state in states:
        config = state.cell.config
        told = {"run_id": state.run_id, "state": state.state, "detail": state.detail}
        where = {"job": state.job, "log": state.log}
        names = {"model": config.model.name, "method": config.method_name}
        data.append({**names, "bits": config.bits.name, **told, **where})
    return Answer(text, data, failed=any_failed(states))
