"""`segbench inspect`: every Linear of a denoiser, as the static graph has it."""

from __future__ import annotations

import argparse
import json

from experiments.config.places import options as choices
from experiments.config.places import read_yaml
from experiments.errors import UserError
from experiments.store.paths import resolve_path
from experiments.verbs.answer import Answer
from experiments.zoo.inspection import inspect_denoiser, render_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    given = dict(item.partition("=")[::2] for item in options.overrides)
    unknown = set(given) - {"model", "model.path"}
    if unknown or len(given) != 1:
        raise UserError("inspect takes one of model=NAME or model.path=FOLDER_OR_CONFIG")
    target: str = given.get("model.path") or given.get("model") or ""
    if target in choices("model") and target != "folder":
        target = str(resolve_path(str(read_yaml("model", target)["path"])))
    try:
        graph = inspect_denoiser(target)
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return Answer(render_table(graph), json.loads(graph.to_json()))
