"""`segbench models`: the models that conf/model names."""

from __future__ import annotations

import argparse

from experiments.config.catalogue import describe_models, render_models
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> Answer:
    models = describe_models()
    return Answer(render_models(models), models)
