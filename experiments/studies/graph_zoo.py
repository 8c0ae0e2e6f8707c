"""Analyses every architecture of the zoo at full size, each in a process of its own.

    python -m experiments.studies.graph_zoo --out experiments/results/graph_zoo.md

writes the table and, beside it, the same numbers as `graph_zoo.csv`.
"""

import argparse
import csv
import logging
import re
import resource
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from experiments.zoo import build, example_inputs, names
from experiments.zoo.inspection import has_heads, polarity, sizes, summarize
from segquant.graph import LayerGraph, LayerInfo, analyze

logger = logging.getLogger(__name__)

COLUMNS = {
    "linear": "Linears",
    "linear_output_segments": "output segments",
    "linear_input_segments": "input segments",
    "linear_heads": "attention heads",
    "linear_one_sided": "one-sided",
    "linear_partly_one_sided": "partly one-sided",
    "linear_gated": "gated",
    "linear_called_again": "called again",
    "conv2d": "Conv2ds",
    "conv2d_output_segments": "conv output segments",
    "conv2d_input_segments": "conv input segments",
    "conv2d_one_sided": "conv one-sided",
    "unknown_ops": "operations not followed",
}
# What the detector of the SegQuant authors' code finds, pattern by pattern.
AUTHORS = {
    "sd3-medium": {"chunk": 49, "reshape": 47, "concat": 0, "activation": 98},
    "flux.1-dev": {"chunk": 77, "reshape": 38, "concat": 0, "activation": 118},
    "sdxl": {"chunk": 70, "reshape": 140, "concat": 0, "activation": 89},
}
# Their pattern -> the findings here that contain it. Their 89 activations of SDXL include its 70
# GEGLU products, which are not one-sided: they are found as gated.
OURS = {
    "chunk": ("linear_output_segments",),
    "reshape": ("linear_heads",),
    "concat": ("linear_input_segments",),
    "activation": ("linear_one_sided", "linear_partly_one_sided", "linear_gated"),
}


def measure(name: str) -> dict[str, Any]:
    """One architecture in this process: counts, CPU seconds on one thread, peak memory."""
    denoiser = build(name)
    inputs = example_inputs(denoiser)
    start = time.process_time()
    graph = analyze(denoiser, inputs)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "architecture": name,
        "class": type(denoiser).__name__,
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "cpu_seconds": round(seconds, 1),
        "peak_memory_gib": round(peak / 2**30, 2),
        **{key: summarize(graph).get(key, 0) for key in COLUMNS if key != "unknown_ops"},
        "unknown_ops": sum(graph.unknown_ops.values()),
        "findings": findings(graph),
    }


def findings(graph: LayerGraph) -> list[dict[str, Any]]:
    """Layers with a finding, those that differ in block numbers alone as one."""
    groups: dict[tuple[str, ...], list[LayerInfo]] = {}
    for layer in graph.values():
        cells = (
            layer.kind,
            re.sub(r"\.\d+\.", ".*.", layer.name),
            sizes(layer.output_segments),
            sizes(tuple(segment.size for segment in layer.input_segments)),
            sizes(layer.head_segments) if has_heads(layer) else "",
            " ".join(map(polarity, layer.input_segments)),
        )
        gated = any("(gated " in segment.producer for segment in layer.input_segments)
        if layer.paths or gated:
            groups.setdefault((*cells, "gated" if gated else ""), []).append(layer)
    keys = ("kind", "layer", "output", "input", "heads", "polarity", "gated")
    return [
        {
            **dict(zip(keys, cells, strict=True)),
            "count": len(layers),
            "why": "; ".join(layers[0].paths) or layers[0].input_segments[0].producer,
        }
        for cells, layers in groups.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# What the static graph says of each architecture",
        "",
        "Full published size on the meta device, no weights; made by",
        "`python -m experiments.studies.graph_zoo --out experiments/results/graph_zoo.md`.",
        "CPU seconds are those of `analyze`, on one thread and cold; peak memory is the resident",
        "size of a forked process, which leaves out what it never touches of torch and diffusers.",
        "A process started afresh for FLUX.1 has 0.83 GiB. Counts are of layers.",
        "",
        *_table(
            ["architecture", "parameters", "CPU s", "peak GiB", *COLUMNS.values()],
            [
                [r["architecture"], f"{r['parameters']:,}", r["cpu_seconds"], r["peak_memory_gib"]]
                + [r[key] for key in COLUMNS]
                for r in rows
            ],
        ),
        "",
        *_comparison(rows),
    ]
    for row in rows:
        lines += ["", f"## {row['architecture']}", "", *_findings_table(row["findings"])]
    return "\n".join(lines) + "\n"


def _comparison(rows: list[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        for pattern, theirs in AUTHORS.get(row["architecture"], {}).items():
            ours = sum(row[key] for key in OURS[pattern])
            beyond = _reasons(row["findings"], pattern) if ours > theirs else ""
            cells.append([row["architecture"], pattern, theirs, ours, ours - theirs, beyond])
    header = ["architecture", "pattern", "authors' detector", "here", "beyond", "which, and why"]
    return [
        "## Beside the detector of the SegQuant authors' code",
        "",
        "All that it finds is found. Its 70 GEGLU products of SDXL are counted as gated, since a",
        "product with an activation is bounded on neither side.",
        "",
        *_table(header, cells),
    ]


def _reasons(found: list[dict[str, Any]], pattern: str) -> str:
    """The groups of layers that the authors' pattern cannot see."""
    joined = [entry for entry in found if entry["kind"] == "linear" and entry["input"]]
    if pattern == "reshape":
        joined = [entry for entry in joined if entry["heads"]] or [
            entry for entry in found if entry["heads"]
        ]
    elif pattern == "activation":
        joined = [entry for entry in joined if "+" in entry["polarity"]]
    return "; ".join(f"{e['count']} x `{e['layer']}`: {e['why']}" for e in joined)


def _findings_table(found: list[dict[str, Any]]) -> list[str]:
    header = ["layers", "count", "kind", "output", "input", "heads", "polarity", "why"]
    cells = [
        [
            f"`{e['layer']}`",
            *(e[key] for key in ("count", "kind", "output", "input", "heads")),
            f"{e['polarity']} {e['gated']}".strip(),
            e["why"],
        ]
        for e in found
    ]
    return _table(header, cells)


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def write(rows: list[dict[str, Any]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(rows))
    fields = [key for key in rows[0] if key != "findings"]
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the markdown table to write")
    out = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rows = []
    # A process each, forked after the imports, so that the peak memory is its own.
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, names()):
            rows.append(row)
            logger.info("%s: %s s", row["architecture"], row["cpu_seconds"])
    write(rows, out)


if __name__ == "__main__":
    main()
