"""`segbench models`: the models that conf/model names."""

from __future__ import annotations

import argparse
from typing import Any

from evaluation.report.markdown import escape, pipe_table
from experiments.config.catalogue import first_comment
from experiments.config.parts import REQUIRED
from experiments.config.places import find_yaml, options, read_yaml
from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.sampling.model_folder import check_folder, pipeline_index
from experiments.sampling.model_parts import given_parts
from experiments.verbs.answer import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(given: argparse.Namespace) -> Answer:
    models = describe_models()
    return Answer(render_models(models), models)


def describe_models() -> list[dict[str, Any]]:
    """Per model: whether its weights are here, its pipeline's class, and all that its yaml says."""
    rows = []
    for name in options("model"):
        node = read_yaml("model", name)
        path = find_yaml("model", name)
        assert path is not None
        found = _class_here(node)
        # what is not here is named by its yaml: the class stands first in its first line
        named = node.get("pipeline") or first_comment(path).split(",")[0]
        kind = found or (named if named.endswith("Pipeline") else "")
        rows.append({**node, "model": name, "present": bool(found), "pipeline": kind})
    return rows


def _class_here(node: dict[str, Any]) -> str:
    """The pipeline's class of a model all of whose folders are on this machine, else ''."""
    path = str(node["path"])
    if path == REQUIRED:
        return ""
    try:
        model = ModelConfig(**node)
        folder = check_folder(model)
        index = pipeline_index(folder)
        given_parts(model, folder, index)
        return model.pipeline or str(index["_class_name"])
    except (UserError, TypeError):  # not here; or a yaml of somebody's that is no ModelConfig
        return ""


def render_models(rows: list[dict[str, Any]]) -> str:
    """One row a model, and what the columns mean."""
    body = []
    for row in rows:
        own = row["path"] == REQUIRED
        gated = ", gated" if row.get("gated") else ""
        size = row.get("weights_bytes")
        body.append(
            [
                row["model"],
                row["pipeline"] or "any",
                "-" if own else "yes" if row["present"] else "no",
                *(str(row[key]) for key in ("num_inference_steps", "guidance_scale")),
                f"{size / 1e9:.1f}" if size else "-",
                f"{row.get('licence') or '-'}{gated}",
                "model.path=..." if own else row["path"],
            ]
        )
    head = ["model", "pipeline", "here", "steps", "guidance", "GB", "licence", "folder or hub id"]
    return "\n".join(
        [
            pipe_table(head, [[escape(cell) for cell in line] for line in body]),
            "",
            "here: whether the weights are on this machine; GB: of all weights that a run loads; "
            "gated: after its",
            "licence was agreed to with an account. segbench inspect model=NAME needs no weights.",
        ]
    )
