"""The two verbs: what they are given, and where their answers go."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from experiments.errors import UserError
from experiments.sampling.machine import resolve_device
from experiments.speed import time_denoiser as model
from experiments.speed import time_products as kernels
from experiments.speed.cell_speed_tables import cells_csv, cells_markdown
from experiments.speed.cells_command import bench_cells
from experiments.speed.full_sizes import find_models
from experiments.speed.session import Session
from experiments.speed.speed_tables import kernels_markdown, model_markdown
from experiments.store.folders import write_text
from segquant.kernels import choice


def bench_kernels(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    device = resolve_device(options.device)
    if options.write_table and device.type != "cuda":
        raise UserError("--write-table is for a GPU's measurements; this is a CPU")
    result = kernels.bench(_session(options, device))
    if options.write_table:
        write_table(result, choice.TABLE)
    text = kernels_markdown(result)
    _save(options.out, "bench_kernels", result, text)
    return result, text


def bench_model(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.overrides:
        result = bench_cells(options)
        text = cells_markdown(result)
        _save(options.out, "bench_cells", result, text)
        if options.out is not None:
            write_text(options.out / "bench_cells.csv", cells_csv(result))
        return result, text
    result = model.bench(_session(options, resolve_device(options.device)))
    text = model_markdown(result)
    _save(options.out, "bench_model", result, text)
    return result, text


def _session(options: argparse.Namespace, device: torch.device) -> Session:
    return Session(
        models=find_models(options.models),
        device=device,
        small=options.small,
        compiled=not options.no_compile,
        budget_seconds=options.budget_seconds,
    )


def write_table(result: dict[str, Any], path: Path) -> None:
    """Puts a device's measurements into the table that `segquant.kernels.choice` reads."""
    content = json.loads(path.read_text())
    content["devices"] |= kernels.speed_table(result)
    write_text(path, json.dumps(content, indent=2) + "\n")


def _save(folder: Path | None, name: str, result: dict[str, Any], text: str) -> None:
    if folder is not None:
        write_text(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
        write_text(folder / f"{name}.md", text)
