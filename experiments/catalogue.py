"""What there is: the methods and models that conf/ names, described from their own classes."""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import asdict, fields
from typing import Any

from omegaconf import OmegaConf

from experiments.config import CONF, build, compose_config, options
from segquant.core.schemes import Bits

_HEADINGS = ("Source:", "Left out:", "Cost:")


def bits_of(method: Any) -> list[str]:
    """The names in conf/bits that a method does."""
    return [name for name, bits in _all_bits().items() if method.unsupported(bits) is None]


@functools.cache
def _all_bits() -> dict[str, Bits]:
    """Every yaml of conf/bits."""
    return {
        name: build(compose_config([f"bits={name}", "method=fp"]), method_name="fp").bits
        for name in options("bits")
    }


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
                "source": _told(method, "Source:"),
                "left_out": _told(method, "Left out:"),
                "cost": _told(method, "Cost:"),
                "settings": {f.name: _plain(getattr(method, f.name)) for f in fields(method)},
                "needs": asdict(needs),
                "bits": bits_of(method),
            }
        )
    return rows


def _told(method: Any, heading: str) -> str:
    """What a method's docstring says after a heading, up to the next one or an empty line."""
    text = inspect.getdoc(type(method)) or ""
    if heading not in text:
        return ""
    rest = text.split(heading, 1)[1]
    ends = [at for end in (*_HEADINGS, "\n\n") if (at := rest.find(end)) >= 0]
    return " ".join(rest[: min(ends, default=len(rest))].split())


def _plain(value: Any) -> Any:
    return getattr(value, "name", value)


def render_methods(rows: list[dict[str, Any]]) -> str:
    """One row a method, then the bits by name with the granularity that each stands for."""
    lines = [
        "| method | what | source | left out | needs | cost | bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        needs = ", ".join(_needs(row["needs"])) or "extremes"
        cells = [row["method"], row["what"], row["source"], row["left_out"], needs, row["cost"]]
        cells.append(", ".join(row["bits"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") or "-" for cell in cells) + " |")
    lines += ["", "| bits | weights | inputs |", "|---|---|---|"]
    for name in options("bits"):
        bits = build(compose_config([f"bits={name}", "method=fp"]), method_name="fp").bits
        lines.append(f"| {name} | {bits.weight.describe()} | {bits.activation.describe()} |")
    return "\n".join(lines)


def _needs(needs: dict[str, Any]) -> list[str]:
    words = {
        "gram": "Gram matrices",
        "graph": "the static graph",
        "replay": "replayed calls",
        "steps": "statistics per step",
        "capture_bytes": "stored calls",
    }
    return [word for key, word in words.items() if needs.get(key)]


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
