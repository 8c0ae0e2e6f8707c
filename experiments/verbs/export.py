"""`segbench export DIR --to FORMAT --out FOLDER`: a quantized pipeline for other programs."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.deployment.onnx_folder import (
    Exported,
    denoiser_calls,
    export_folder,
    load_folder,
    measured_call,
)
from experiments.deployment.pipeline_folder import check_target
from experiments.errors import UserError, told_to_the_user
from experiments.sampling.pipelines import get_denoiser
from experiments.verbs.answer import Answer
from segquant.deploy.onnx_running import why_not_installed
from segquant.deploy.other_formats import FORMS, write_form

ONNX = "onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, choices=(ONNX, *FORMS), help="the format")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--denoiser-only", action="store_true", help="onnx: no text encoders, VAE and generate.py"
    )


def run(options: argparse.Namespace) -> Answer:
    """Nothing is written where something is refused.

    Words after the folder are arguments of the pipeline's call, which an ONNX file is for: those
    that the cell was measured with, where they are not given.

    Raises:
        UserError: the folder, or something in it, is not for that format.
    """
    if not options.overrides or "=" in options.overrides[0]:
        raise UserError("export takes a folder that segbench quantize wrote, then height=512 ...")
    folder, *words = options.overrides
    check_target(options.out)
    onnx = options.to == ONNX
    _check_installed(options.to)
    pipeline = load_folder(Path(folder), dtype=torch.float32 if onnx else None)
    settings = measured_call(Path(folder)) | _settings(words, type(pipeline))
    if not onnx:
        return _in_form(pipeline, options.out, form=options.to, settings=settings)
    with told_to_the_user():
        made = export_folder(
            pipeline, options.out, settings=settings, denoiser_only=options.denoiser_only
        )
    return _answer(made)


def _check_installed(form: str) -> None:
    """Before a model is loaded.

    Raises:
        UserError: a package that writes the format is not there.
    """
    missing = why_not_installed() if form == ONNX else FORMS[form].missing
    if missing is not None:
        raise UserError(f"--to {form}: {missing}")


def _in_form(pipeline: Any, out: Path, *, form: str, settings: dict[str, Any]) -> Answer:
    """The denoiser's folder, as the library has it."""
    with told_to_the_user():
        call = denoiser_calls(pipeline, settings, counts=(1,))[0]
        inputs = {name: value for name, value in call.items() if name != "return_dict"}
        made = write_form(get_denoiser(pipeline), out, form=form, inputs=inputs)
    how = FORMS[form].how_to_load
    return Answer(
        f"{out}: the denoiser in {form}; {how}", {"folder": str(made.folder), "load": how}
    )


def _settings(words: list[str], kind: type) -> dict[str, Any]:
    """`height=512` as {"height": 512}.

    Raises:
        UserError: a word is none, or the pipeline's call has no such argument.
    """
    takes = inspect.signature(kind.__call__).parameters
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in takes:
            given = ", ".join(takes)
            raise UserError(f"{word}; {kind.__name__} takes NAME=VALUE, a NAME of {given}")
        settings[name] = yaml.safe_load(value)
    return settings


def _answer(made: Exported) -> Answer:
    layers, others = len(made.said.integer_layers), len(made.said.float_layers)
    text = (
        f"{made.folder}: {layers} Linears as products of integers"
        + (f", {others} as products of floats" if others else "")
        + f"; {made.megabytes:.1f} MB"
    )
    agreement = made.agreement
    text += (
        f"\nthe denoiser's output differs by {agreement.difference:.1e} from torch's, which moves "
        f"by {agreement.nudged:.1e} with a millionth of its input"
    )
    if made.generates:
        text += f"\nwithout torch: python {made.folder / 'generate.py'} PROMPT --to image.png"
    data: dict[str, Any] = {
        "folder": str(made.folder),
        "integer_layers": made.said.integer_layers,
        "float_layers": made.said.float_layers,
        "megabytes": made.megabytes,
        "difference": agreement.difference,
        "nudged": agreement.nudged,
    }
    return Answer(text, data)
