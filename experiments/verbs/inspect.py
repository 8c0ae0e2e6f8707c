"""`segbench inspect`: every Linear of a denoiser, as the static graph has it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from experiments.config.compose import build, compose_config
from experiments.config.places import options as choices
from experiments.config.places import read_yaml
from experiments.errors import UserError
from experiments.sampling.call_arguments import example_prompt
from experiments.sampling.model_folder import check_folder, check_weights
from experiments.sampling.pipelines import load_pipeline
from experiments.sampling.single_files import single_file
from experiments.sampling.static_graph import graph_of
from experiments.store.paths import resolve_path
from experiments.verbs.answer import Answer
from experiments.zoo.inspection import inspect_denoiser, render_table
from segquant.graph import LayerGraph


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    given = dict(item.partition("=")[::2] for item in options.overrides)
    which = [word for word in ("model", "model.path") if word in given]
    if len(which) != 1 or any(not word.startswith("model.") for word in set(given) - {"model"}):
        raise UserError(
            "inspect takes one of model=NAME or model.path=FOLDER_OR_CONFIG, and settings model.*"
        )
    target: str = given.get("model.path") or given.get("model") or ""
    if target in choices("model") and target != "folder":
        target = str(resolve_path(str(read_yaml("model", target)["path"])))
    if single_file(target) is not None:
        graph = _of_one_call(options.overrides)
        return Answer(render_table(graph), json.loads(graph.to_json()))
    try:
        graph = inspect_denoiser(target)
    except (ValueError, OSError) as error:
        if not (Path(target) / "model_index.json").is_file():
            raise UserError(" ".join(str(error).split())) from error
        graph = _of_one_call(options.overrides)
    return Answer(render_table(graph), json.loads(graph.to_json()))


def _of_one_call(words: list[str]) -> LayerGraph:
    """The graph as `run` has it: of the first call that the pipeline makes of its denoiser."""
    model = build(compose_config(words), method_name="").model
    folder = check_folder(model)
    if single_file(model.path) is None:
        check_weights(folder, besides=model.parts)
    pipeline = load_pipeline(model, device=torch.device("cpu"))
    return graph_of(pipeline, example_prompt(type(pipeline)), config=model)
