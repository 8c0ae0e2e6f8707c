"""`segbench quantize model=.. method=.. bits=.. --to DIR`: a pipeline that diffusers loads."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.deployment.pipeline_folder import check_deployable, check_target, write_pipeline
from experiments.errors import UserError, told_to_the_user
from experiments.verbs.answer import Answer

_SHARD = re.compile(r"\d+(\.\d+)?\s?[KMGT]?B")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--shard", default="10GB", metavar="SIZE", help="the most of one file; default: 10GB"
    )


def run(options: argparse.Namespace) -> Answer:
    """From a finished cell at no cost: `out` is the store that has it, or that it goes to.

    Raises:
        UserError: the request was wrong, or such a denoiser is not for other programs.
    """
    if not _SHARD.fullmatch(options.shard):
        raise UserError(f"--shard {options.shard}; give a size, as 500MB or 10GB")
    check_target(options.to)
    sweep = open_sweep(read_request(options.overrides, multirun=False))
    if len(sweep.cells) != 1:
        raise UserError(f"{len(sweep.cells)} cells; quantize takes one model, method and bits")
    (cell,) = sweep.cells
    check_deployable(cell)
    sweep.progress.cell(cell.label)
    command = shlex.join(["segbench", "quantize", *options.overrides, "--to", str(options.to)])
    with told_to_the_user():
        written = write_pipeline(cell, options.to, shard=options.shard, command=command)
    report = written.report
    text = (
        f"{written.folder}: {len(report.layers_quantized)} Linears at {cell.config.bits.name}, "
        f"{len(report.layers_kept)} kept, {written.weight_bytes / 1e6:.1f} MB of weights\n"
        f"import segquant.diffusers, then DiffusionPipeline.from_pretrained({str(written.folder)!r}"
        f", torch_dtype=torch.{cell.config.model.dtype})"
    )
    data = {
        "folder": str(written.folder),
        "weight_bytes": written.weight_bytes,
        "layers_quantized": len(report.layers_quantized),
        "layers_kept": len(report.layers_kept),
    }
    return Answer(text, data)
