"""What there is: the methods and models that conf/ names, described from their own classes."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf

from experiments.config import CONF, build, compose_config, options


def bits_of(method: Any) -> list[str]:
    """The names in conf/bits that a method does."""
    found = []
    for name in options("bits"):
        node = compose_config([f"bits={name}", "method=fp"])
        bits = build(node, method_name="fp").bits
        if method.unsupported(bits) is None:
            found.append(name)
    return found


def describe_methods() -> list[dict[str, Any]]:
    """Per method: its class, first line of its docstring, settings, needs and bits."""
    rows = []
    for name in options("method"):
        config = build(compose_config([f"method={name}"]), method_name=name)
        method = config.method
        needs = method.needs()
        rows.append(
            {
                "method": name,
                "class": f"{type(method).__module__}.{type(method).__qualname__}",
                "what": (inspect.getdoc(type(method)) or "").splitlines()[0],
                "settings": {f.name: _plain(getattr(method, f.name)) for f in fields(method)},
                "needs": asdict(needs),
                "bits": bits_of(method),
            }
        )
    return rows


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def render_methods(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | what | needs | bits |", "|---|---|---|---|"]
    for row in rows:
        needs = [key for key in ("gram", "graph", "replay") if row["needs"][key]] or ["extremes"]
        bits = ", ".join(row["bits"])
        lines.append(f"| {row['method']} | {row['what']} | {', '.join(needs)} | {bits} |")
    return "\n".join(lines)


def describe_models() -> list[dict[str, Any]]:
    """Per model: its folder, whether it is there, its pipeline class and how it is sampled."""
    from experiments.pipelines import resolve_path

    rows = []
    for name in options("model"):
        node = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
        assert isinstance(node, dict)
        folder = resolve_path(str(node["path"]))
        index = folder / "model_index.json"
        present = index.is_file()
        kind = json.loads(index.read_text())["_class_name"] if present else ""
        rows.append({"model": name, "present": present, "pipeline": kind, **node})
    return rows


def render_models(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | pipeline | steps | guidance | batch | folder |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        kind = row["pipeline"] or ("any" if row["model"] == "folder" else "not here yet")
        path = "model.path=..." if row["path"] == "???" else row["path"]
        lines.append(
            f"| {row['model']} | {kind} | {row['num_inference_steps']} | "
            f"{row['guidance_scale']} | {row['batch_size']} | {path} |"
        )
    return "\n".join(lines)
