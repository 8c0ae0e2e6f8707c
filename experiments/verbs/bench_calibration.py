"""`segbench bench-calibration`: what one pass for all methods costs, against a loop of passes."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from experiments.config.request import read_request
from experiments.speed.calibration_cost import measure, ratios, render
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    given = ["method=segquant_a", *options.overrides]
    (config,) = read_request(given, multirun=False).cells
    costs = measure(config)
    data = {"costs": [asdict(cost) for cost in costs], "ratios": ratios(costs)}
    return Answer(render(costs), data)
