"""Analyses every architecture of the zoo at full size, each in a process of its own.

    python -m experiments.studies.graph_zoo --out experiments/results/graph_zoo.md

writes the table and, beside it, the same numbers as `graph_zoo.csv`.
"""

import argparse
import logging
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from evaluation.report.markdown import escape, pipe_table
from experiments.store.folders import write_text
from experiments.studies.csv_text import csv_text
from experiments.zoo import build, example_inputs, names
from experiments.zoo.inspection import LayerWords, is_gated, summarize, words_of
from experiments.zoo.published import models_with
from segquant.graph import LayerGraph, LayerInfo, analyze

log = logging.getLogger(__name__)

COMMAND = "python -m experiments.studies.graph_zoo"

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


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Layers of one architecture that differ in block numbers alone."""

    layer: str  # a star stands for the block number
    kind: str
    words: LayerWords
    gated: bool
    count: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One architecture: CPU seconds on one thread, peak memory, layers by `COLUMNS`."""

    architecture: str
    class_name: str
    parameters: int
    cpu_seconds: float
    peak_memory_gib: float
    counts: dict[str, int]
    findings: list[Finding]


def measure(name: str) -> Measured:
    """One architecture, in this process."""
    denoiser = build(name)
    inputs = example_inputs(denoiser)
    start = time.process_time()
    graph = analyze(denoiser, inputs)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counts = {**summarize(graph), "unknown_ops": sum(graph.unknown_ops.values())}
    return Measured(
        architecture=name,
        class_name=type(denoiser).__name__,
        parameters=sum(parameter.numel() for parameter in denoiser.parameters()),
        cpu_seconds=round(seconds, 1),
        peak_memory_gib=round(peak / 2**30, 2),
        counts={key: counts.get(key, 0) for key in COLUMNS},
        findings=findings(graph),
    )


def findings(graph: LayerGraph) -> list[Finding]:
    """Layers with a finding, those that differ in block numbers alone as one."""
    groups: dict[tuple[str, str, LayerWords, bool], list[LayerInfo]] = {}
    for layer in graph.values():
        gated = is_gated(layer)
        if layer.paths or gated:
            name = re.sub(r"\.\d+\.", ".*.", layer.name)
            groups.setdefault((layer.kind, name, words_of(layer), gated), []).append(layer)
    return [
        Finding(
            layer=name,
            kind=kind,
            words=words,
            gated=gated,
            count=len(layers),
            why="; ".join(layers[0].paths) or layers[0].input_segments[0].producer,
        )
        for (kind, name, words, gated), layers in groups.items()
    ]


def markdown(rows: Sequence[Measured]) -> str:
    lines = [
        "# What the static graph says of each architecture",
        "",
        "Full published size on the meta device, no weights; made by",
        f"`{COMMAND} --out experiments/results/graph_zoo.md`.",
        "CPU seconds are those of `analyze`, on one thread and cold; peak memory is the resident",
        "size of a forked process, which leaves out what it never touches of torch and diffusers.",
        "A process started afresh for FLUX.1 has 0.83 GiB. Counts are of layers; `models` are the",
        "yamls of `conf/model` that have such a denoiser.",
        "",
        _counts_table(rows),
        "",
        "## Beside the detector of the SegQuant authors' code",
        "",
        "All that it finds is found. Its 70 GEGLU products of SDXL are counted as gated, since a",
        "product with an activation is bounded on neither side.",
        "",
        _comparison(rows),
    ]
    for row in rows:
        lines += ["", f"## {row.architecture}", "", _findings_table(row.findings)]
    return "\n".join(lines) + "\n"


def _counts_table(rows: Sequence[Measured]) -> str:
    head = ["architecture", "models", "parameters", "CPU s", "peak GiB", *COLUMNS.values()]
    body = [
        [
            *(row.architecture, " ".join(models_with(row.architecture)), f"{row.parameters:,}"),
            *(str(row.cpu_seconds), str(row.peak_memory_gib)),
            *(str(row.counts[key]) for key in COLUMNS),
        ]
        for row in rows
    ]
    return pipe_table(head, body, numeric=[False, False, *(True for _ in head[2:])])


def _comparison(rows: Sequence[Measured]) -> str:
    head = ["architecture", "pattern", "authors' detector", "here", "beyond", "which, and why"]
    body = []
    for row in rows:
        for pattern, theirs in AUTHORS.get(row.architecture, {}).items():
            ours = sum(row.counts[key] for key in OURS[pattern])
            beyond = _reasons(row.findings, pattern) if ours > theirs else ""
            numbers = [str(theirs), str(ours), str(ours - theirs)]
            body.append([row.architecture, pattern, *numbers, escape(beyond)])
    return pipe_table(head, body, numeric=[False, False, True, True, True, False])


def _reasons(findings: Sequence[Finding], pattern: str) -> str:
    """The groups of layers that the authors' pattern cannot see."""
    unseen = [group for group in findings if group.kind == "linear" and group.words.input]
    if pattern == "reshape":
        unseen = [group for group in unseen if group.words.heads] or [
            group for group in findings if group.words.heads
        ]
    elif pattern == "activation":
        unseen = [group for group in unseen if "+" in group.words.polarity]
    return "; ".join(f"{group.count} x `{group.layer}`: {group.why}" for group in unseen)


def _findings_table(findings: Sequence[Finding]) -> str:
    head = ["layers", "count", "kind", "output", "input", "heads", "polarity", "why"]
    body = [
        [
            *(f"`{group.layer}`", str(group.count), group.kind),
            *(group.words.output, group.words.input, group.words.heads),
            f"{group.words.polarity} {'gated' if group.gated else ''}".strip(),
            escape(group.why),
        ]
        for group in findings
    ]
    return pipe_table(head, body, numeric=[column == "count" for column in head])


def write(rows: Sequence[Measured], out: Path) -> None:
    """The table, and the numbers beside it as csv."""
    write_text(out, markdown(rows))
    head = ["architecture", "class", "models", "parameters", "cpu_seconds", "peak_memory_gib"]
    head += COLUMNS
    body: list[list[str | float]] = [
        [
            *(row.architecture, row.class_name, " ".join(models_with(row.architecture))),
            row.parameters,
            *(row.cpu_seconds, row.peak_memory_gib),
            *(row.counts[key] for key in COLUMNS),
        ]
        for row in rows
    ]
    write_text(out.with_suffix(".csv"), csv_text(head, body))


def main() -> None:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog=COMMAND, description=description)
    parser.add_argument("--out", type=Path, required=True, help="the markdown table to write")
    out = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    rows = []
    # A process each, forked after the imports, so that the peak memory is its own.
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, names()):
            rows.append(row)
            log.info("%s: %s s", row.architecture, row.cpu_seconds)
    write(rows, out)


if __name__ == "__main__":
    main()
