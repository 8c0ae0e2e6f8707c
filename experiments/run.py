"""One cell, from config to record, in stages that no other cell repeats.

config -> reference images and trajectory -> calibration -> quantized denoiser -> images -> metrics
-> record.json. Each stage lies in the store under the hash of what it depends on.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.fp import FullPrecision
from evaluation.evaluate import evaluate_images, unavailable
from evaluation.records import Record, read_record, write_record
from evaluation.resources import describe_environment, utc_now
from evaluation.trajectory import trajectory_metrics
from experiments import protocol
from experiments.bench import Bench, floor_of, threads
from experiments.config import RunConfig
from experiments.correct import variance_note
from experiments.data import prompts_hash
from experiments.errors import UserError
from experiments.naming import changed_settings
from experiments.store import Stage, digest, source_digest
from segquant.core.calibration import Calibration
from segquant.core.protocol import QuantizationReport

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parent.parent
_CODE = (
    "evaluation",
    "experiments/bench.py",
    "experiments/run.py",
    "experiments/protocol.py",
)


def cell_key(bench: Bench, config: RunConfig) -> Any:
    """Everything that the cell's record depends on; its hash is the run id."""
    return {
        "schema": 1,
        "names": [config.model.name, config.method_name, config.bits.name, config.dataset.name],
        "sampler": bench.sampler(),
        "evaluation": prompts_hash(bench.dataset.evaluation),
        "replay": [config.latents, config.image],
        "true_images": bench.dataset.config.images,
        "quantized": bench.quantized_key(config),
        "metrics": protocol.plain(asdict(config.metrics)),
        "evaluator": bench.evaluator.key,
        "code": source_digest(*_CODE),
    }


def image_folder(bench: Bench, config: RunConfig) -> Path:
    """Where the cell's images lie once they are made."""
    floor = floor_of(config)
    unquantized = floor is not None or isinstance(config.method, FullPrecision)
    name = "float" if unquantized else digest(bench.quantized_key(config))
    return bench.store.folder("images", bench.images_key(name, floor=floor))


def record_path(bench: Bench, config: RunConfig) -> Path:
    return bench.store.root / "cells" / digest(cell_key(bench, config)) / "record.json"


def find_record(bench: Bench, config: RunConfig) -> Record | None:
    """The cell's record if it is there and is not that of a failure."""
    path = record_path(bench, config)
    if not path.exists():
        return None
    record = read_record(path)
    return None if record.status == "failed" else record


def run_cell(bench: Bench, config: RunConfig) -> Record:
    """Does what is not done yet and writes the record; a failure is a record too.

    Raises:
        UserError: the request was wrong (that is no failure of the cell).
    """
    known = find_record(bench, config)
    if known is not None:
        return known
    path = record_path(bench, config)
    started = utc_now()
    try:
        record = _measure(bench, config, run_id=path.parent.name)
    except UserError:
        raise
    except Exception as error:  # one cell's failure is its own: recorded, never passed on
        log.exception("%s %s failed", config.method_name, config.bits.name)
        record = _blank(bench, config, run_id=path.parent.name, status="failed")
        record.reason = f"{type(error).__name__}: {error}"
        record.traceback = traceback.format_exc()
    record.environment = describe_environment(repository=PROJECT)
    record.times_utc = {"started": started, "finished": utc_now()}
    write_record(path, record)
    return record


def record_failure(bench: Bench, config: RunConfig, reason: str) -> Record:
    """Writes a record of a cell that could not speak for itself."""
    path = record_path(bench, config)
    record = _blank(bench, config, run_id=path.parent.name, status="failed")
    record.reason = reason
    record.environment = describe_environment(repository=PROJECT)
    record.times_utc = {"finished": utc_now()}
    write_record(path, record)
    return record


def _blank(bench: Bench, config: RunConfig, *, run_id: str, status: str) -> Record:
    return Record(
        run_id=run_id,
        status=status,
        model=config.model.name,
        method=config.method_name,
        bits=config.bits.name,
        settings=changed_settings(config),
        dataset=config.dataset.name,
        seed=config.seed,
        protocol=protocol.describe(bench, config),
    )


def _measure(bench: Bench, config: RunConfig, *, run_id: str) -> Record:
    reason = config.method.unsupported(config.bits)
    if reason is not None:
        record = _blank(bench, config, run_id=run_id, status="skipped")
        record.reason = reason
        return record
    record = _blank(bench, config, run_id=run_id, status="ok")
    floor, attached = floor_of(config), None
    reference = bench.reference()
    record.seconds["reference"] = reference.seconds
    if floor is not None or isinstance(config.method, FullPrecision):
        denoiser, name = None, "float"
        calibration = Calibration(statistics={}, forwards=0)
        report = config.method.quantize(
            bench.float_denoiser, calibration=calibration, bits=config.bits
        )
        record.execution = "float"
    else:
        stage = bench.quantized(config)
        denoiser, report = bench.load_quantized(config, stage)
        name = stage.hash
        record.calibration_forwards = stage.notes["forwards"]
        record.seconds["calibration"] = stage.notes["calibration_seconds"]
        record.seconds["quantize"] = stage.seconds
        record.execution = report.execution
        attached = bench.corrector(config, denoiser, stage)
        if attached is not None:
            note = variance_note(attached.corrector, bench.pipeline.scheduler)
            report.left_out += [] if note is None else [note]
    key = bench.images_key(name, floor=floor)
    images = bench.images(denoiser, key, floor=floor, attached=attached)
    record.seconds["images"] = images.seconds
    count = len(bench.dataset.evaluation)
    record.seconds["seconds_per_image"] = images.seconds / count
    record.peak_memory_bytes = images.notes["peak_memory_bytes"]
    _fill_report(record, report, denoiser=denoiser or bench.float_denoiser)
    _fill_metrics(bench, record, images=images, reference=reference)
    _fill_step_errors(bench, record, errors=bench.step_errors(denoiser, name, floor=floor))
    return record


def _fill_report(record: Record, report: QuantizationReport, *, denoiser: nn.Module) -> None:
    record.layers_quantized = report.layers_quantized
    record.layers_kept = [dict(layer) for layer in report.layers_kept]
    record.execution_by_layer_class = {"Linear": record.execution}
    record.effective_bits_per_weight = report.effective_bits_per_weight
    record.extra_macs_fraction = report.extra_macs_fraction
    record.weight_bytes = report.weight_bytes
    record.search_candidates = report.search_candidates
    record.method_elements = {"included": report.elements, "left_out": report.left_out}
    record.protocol |= protocol.coverage(denoiser, report)


def _fill_metrics(bench: Bench, record: Record, *, images: Stage, reference: Stage) -> None:
    true_images = bench.true_images()
    with threads(bench.num_threads):
        record.metrics |= evaluate_images(
            images.path,
            reference_dir=reference.path,
            dataset_dir=None if true_images is None else true_images.path,
            prompts={prompt.id: prompt.text for prompt in bench.dataset.evaluation},
            evaluator=bench.evaluator,
            prefix=bench.config.metrics.prefix,
            lpips=bench.config.metrics.lpips,
            seed=bench.config.seed,
            resamples=bench.config.metrics.bootstrap_resamples,
            cache_dir=bench.store.root / "stages" / "features",
            per_image_csv=bench.store.root / "cells" / record.run_id / "per_image.csv",
        )
    not_finite = images.notes.get("not_finite", [])
    if not_finite:
        record.protocol["images_not_finite"] = not_finite


def _fill_step_errors(bench: Bench, record: Record, *, errors: torch.Tensor | None) -> None:
    if errors is None:
        reason = "metrics.teacher_forced_prompts=0"
        record.metrics["step_error"] = unavailable(reason, against="reference")
        return
    record.metrics |= trajectory_metrics(
        errors, seed=bench.config.seed, resamples=bench.config.metrics.bootstrap_resamples
    )
