"""A whole pipeline with a cell's quantized denoiser in it, in diffusers' own layout."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.cell.quantized_files import REPORT
from experiments.cell.read_quantized import read_quantized
from experiments.config.naming import changed_settings
from experiments.deployment.model_card import CARD, card_text
from experiments.errors import UserError
from experiments.sampling.assembled import assemble
from experiments.sampling.model_folder import check_folder
from experiments.sampling.model_parts import denoiser_folders
from experiments.sampling.sample import call_settings
from segquant.core.method_interface import QuantizationReport
from segquant.core.several import called_parts

if TYPE_CHECKING:
    from experiments.cell.cell import Cell
    from experiments.config.run_config import ModelConfig

CALL = "call.json"  # arguments of the pipeline's call that the cell was measured with


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written."""

    folder: Path
    weight_bytes: int  # of the quantized denoisers' files
    report: QuantizationReport


def check_deployable(cell: Cell) -> None:
    """Whether the cell is a quantized denoiser and nothing beside it.

    Raises:
        UserError: it is not; the message says why.
    """
    method = cell.config.method_name
    if not cell.quantizes:
        raise UserError(f"method={method} quantizes nothing; choose one of segbench methods")
    if cell.unsupported is not None:
        raise UserError(f"method={method} bits={cell.config.bits.name}: {cell.unsupported}")
    if cell.corrected:
        raise UserError(
            f"method={method} corrects the denoiser's output at every step of this sampler; that "
            "is no part of a denoiser that other programs could load"
        )


def check_target(folder: Path) -> None:
    """Whether a folder can be written: it is not there, or empty.

    Raises:
        UserError: it holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: is there already; give a folder that is not there")


def write_pipeline(cell: Cell, folder: Path, *, shard: str, command: str) -> Written:
    """The pipeline, whole or not at all; the denoiser is made first where the store lacks it.

    Args:
        shard: the most that one file of weights may have, as diffusers takes it: 10GB.
        command: that makes it, for the card.

    Raises:
        UserError: a library's modules, which are saved by that library alone.
    """
    import diffusers

    from segquant.diffusers import as_diffusers

    quantized = cell.quantized
    assert quantized is not None
    stage = quantized.build()
    if (stage.path / REPORT).exists():
        raise UserError(
            f"method={cell.config.method_name} is made of a library's own modules; save it with "
            "that library"
        )
    denoiser, report = read_quantized(quantized)
    cell.around.release()
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    diffusers.utils.logging.disable_progress_bar()
    parts = _parts(cell.config.model, denoiser)
    for part in parts.values():
        as_diffusers(part, recipe=_recipe(cell, stage.hash))
    pipeline = _around(parts, cell.config.model)
    try:
        pipeline.save_pretrained(fresh, max_shard_size=shard)
        text = card_text(cell, report, pipeline=pipeline, parts=list(parts), command=command)
        (fresh / CARD).write_text(text, encoding="utf-8")
        settings = call_settings(pipeline, cell.config.model)
        (fresh / CALL).write_text(json.dumps(settings, indent=1), encoding="utf-8")
        size = sum(f.stat().st_size for n in parts for f in (fresh / n).glob("*.safetensors"))
        if folder.is_dir():
            folder.rmdir()
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Written(folder=folder, weight_bytes=size, report=report)


def _parts(config: ModelConfig, denoiser: nn.Module) -> dict[str, nn.Module]:
    """The quantized denoisers by the pipeline's names for them."""
    parts = called_parts(denoiser)
    if len(parts) > 1:
        return parts
    (name,) = denoiser_folders(config, check_folder(config))
    return {name: denoiser}


def _around(parts: dict[str, nn.Module], config: ModelConfig) -> Any:
    """The pipeline with these parts; its own are read where an adapter needs them."""
    if config.lora is None:
        return assemble(config, instead=parts)
    pipeline = assemble(config)
    pipeline.register_modules(**parts)
    return pipeline


def _recipe(cell: Cell, stage: str) -> dict[str, Any]:
    """What stands in the denoiser's config.json, for people."""
    config = cell.config
    return {
        "model": config.model.name,
        "method": config.method_name,
        "bits": config.bits.name,
        "settings": changed_settings(config),
        "calibration": f"{config.dataset.calibration_prompts} prompts of {config.dataset.name}",
        "stage": stage,
    }
