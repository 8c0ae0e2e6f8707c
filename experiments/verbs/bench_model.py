"""`segbench bench-model`: the speed of a run's denoisers, or of full sizes with random weights."""

from __future__ import annotations

import argparse

from experiments.speed.arguments import add_arguments as add_speed_arguments
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_speed_arguments(parser, table=False)


def run(options: argparse.Namespace) -> Answer:
    from experiments.speed.command import bench_model
    from experiments.verbs.words import check_writable

    check_writable(options.out)
    data, text = bench_model(options)
    return Answer(text, data)
