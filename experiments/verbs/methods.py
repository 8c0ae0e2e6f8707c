"""`segbench methods`: what there is, what each does and needs."""

from __future__ import annotations

import argparse

from experiments.config.catalogue import describe_methods, render_methods
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the names."""


def run(options: argparse.Namespace) -> Answer:
    methods = describe_methods(options.overrides)
    return Answer(render_methods(methods, whole=bool(options.overrides)), methods)
