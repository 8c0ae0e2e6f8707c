"""`segbench inspect`: every Linear of a denoiser, as the static graph has it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.config.compose import build, compose_config
from experiments.config.places import options as choices
from experiments.errors import UserError
from experiments.sampling.call_arguments import example_prompt
from experiments.sampling.model_folder import check_folder, check_weights
from experiments.sampling.model_parts import denoiser_folders
from experiments.sampling.pipelines import load_pipeline
from experiments.sampling.single_files import single_file
from experiments.sampling.static_graph import graph_of
from experiments.store.paths import resolve_path
from experiments.verbs.answer import Answer
from experiments.zoo.inspection import inspect_denoiser, render_table
from experiments.zoo.published import PUBLISHED
from segquant.graph import LayerGraph, merge_graphs

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    given = dict(item.partition("=")[::2] for item in options.overrides)
    which = [word for word in ("model", "model.path") if word in given]
    if not which or any(not word.startswith("model.") for word in set(given) - {"model"}):
        raise UserError(
            "inspect takes model=NAME or model.path=FOLDER_OR_CONFIG, and settings model.*"
        )
    graphs, model = _graphs(given, options.overrides)
    tables = []
    for part, graph in graphs.items():
        title = f"## {part}\n\n" if len(graphs) > 1 else ""
        tables.append(title + render_table(graph) + _kept(graph, part, model))
    data = {part: json.loads(graph.to_json()) for part, graph in graphs.items()}
    return Answer("\n\n".join(tables), data if len(data) > 1 else next(iter(data.values())))


def _graphs(
    given: Mapping[str, str], words: list[str]
) -> tuple[dict[str, LayerGraph], ModelConfig | None]:
    """The graph of every denoiser that is asked for, and the model whose yaml names them."""
    name = given.get("model", "")
    if name not in choices("model"):
        return {"denoiser": _of_a_path(given.get("model.path") or name, words)}, None
    model = build(compose_config(words), method_name="").model
    if name in PUBLISHED and not _is_here(model):
        denoisers = PUBLISHED[name].denoisers
        return {part: inspect_denoiser(config) for part, config in denoisers.items()}, model
    return {"denoiser": _of_a_path(str(resolve_path(model.path)), words)}, model


def _is_here(model: ModelConfig) -> bool:
    """Whether its path is a folder; a hub's model is as its configs in the zoo say."""
    return resolve_path(model.path).exists()


def _of_a_path(target: str, words: list[str]) -> LayerGraph:
    if single_file(target) is not None:
        return _of_one_call(words)
    try:
        return _of_configs(target, words=words)
    except (ValueError, OSError) as error:
        if not (Path(target) / "model_index.json").is_file():
            raise UserError(" ".join(str(error).split())) from error
        return _of_one_call(words)


def _of_configs(target: str, *, words: list[str]) -> LayerGraph:
    """The graph from configs alone; of a pipeline, of all that a run would quantize."""
    if not (Path(target) / "model_index.json").is_file():
        return inspect_denoiser(target)
    model = build(compose_config(words), method_name="").model
    folders = denoiser_folders(model, check_folder(model))
    graphs = {name: inspect_denoiser(str(folder)) for name, folder in folders.items()}
    return merge_graphs(graphs if len(graphs) > 1 else {"": next(iter(graphs.values()))})


def _of_one_call(words: list[str]) -> LayerGraph:
    """The graph as `run` has it: of the first call that the pipeline makes of its denoiser."""
    model = build(compose_config(words), method_name="").model
    folder = check_folder(model)
    if single_file(model.path) is None:
        check_weights(folder, besides=model.parts)
    pipeline = load_pipeline(model, device=torch.device("cpu"))
    return graph_of(pipeline, example_prompt(type(pipeline)), config=model)


def _kept(graph: LayerGraph, part: str, model: ModelConfig | None) -> str:
    """What the yaml leaves in 16 bit, a line for each of its patterns that names a layer here."""
    if model is None:
        return ""
    if part == "controlnet" and part not in (model.denoisers or ()):
        return "\n\nkept in 16 bit as a whole, unless model.denoisers names it"
    linears = [layer.name for layer in graph.values() if layer.kind == "linear"]
    # of several denoisers, a pattern is of names with or without the denoiser's before them
    heads = ("", *(f"{name}." for name in model.denoisers or ()))

    def count(pattern: str) -> int:
        return sum(any(fnmatchcase(n, head + pattern) for head in heads) for n in linears)

    counts = {pattern: count(pattern) for pattern in model.keep}
    lines = [
        f"kept in 16 bit, {pattern}: {number} Linear{'s' * (number != 1)} ({model.keep[pattern]})"
        for pattern, number in counts.items()
        if number
    ]
    return "".join(f"\n{line}" for line in ["", *lines]) if lines else ""
