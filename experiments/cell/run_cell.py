"""One cell, from config to record, in stages that no other cell repeats.

config -> reference images and trajectory -> calibration -> quantized denoiser -> images -> metrics
-> record.json. Each stage lies in the store under the hash of what it depends on.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.fp import FullPrecision
from evaluation.evaluate import evaluate_images, unavailable
from evaluation.records import Record, read_record, write_record
from evaluation.resources import describe_environment, utc_now
from evaluation.trajectory import trajectory_metrics
from experiments.cell import protocol_fields as protocol
from experiments.cell.bench import Bench
from experiments.cell.plan import floor_of
from experiments.config.naming import changed_settings
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.sampling.correct import variance_note
from experiments.sampling.data import prompts_hash
from experiments.sampling.execution import extra_products, kernel_left_out, prepare, runs_on_kernels
from experiments.sampling.machine import threads
from experiments.store.folders import Stage, digest
from experiments.store.paths import ROOT
from experiments.store.sources import source_digest
from segquant.core.calibration import Calibration
from segquant.core.method_interface import QuantizationReport
from segquant.kernels import summarize
from segquant.kernels.fuse import fuse_activations, summarize_fused
from slurm.context import describe_job

log = logging.getLogger(__name__)

_CODE = (
    "evaluation",
    "experiments/cell/bench.py",
    "experiments/sampling/execution.py",
    "experiments/cell/plan.py",
    "experiments/cell/run_cell.py",
    "experiments/cell/protocol_fields.py",
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
        "execution": [config.execution, config.activation_code, config.fuse_activations],
        "metrics": protocol.plain(asdict(config.metrics)),
        "evaluator": bench.evaluator_key,
        "code": source_digest(*_CODE),
    }


def image_folder(bench: Bench, config: RunConfig) -> Path:
    """Where the cell's images lie once they are made."""
    key = bench.images_key(_denoiser_name(bench, config), floor=floor_of(config))
    return bench.store.folder("images", key)


def find_step_errors(bench: Bench, config: RunConfig) -> torch.Tensor | None:
    """The cell's teacher-forced errors [prompts, steps], if they are there."""
    return bench.find_step_errors(_denoiser_name(bench, config), floor=floor_of(config))


def _denoiser_name(bench: Bench, config: RunConfig) -> str:
    unquantized = floor_of(config) is not None or isinstance(config.method, FullPrecision)
    return "float" if unquantized else bench.quantized_name(config)


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
        return record_failure(
            bench, config, f"{type(error).__name__}: {error}", trace=traceback.format_exc()
        )
    record.environment = {**describe_environment(repository=ROOT), **describe_job()}
    record.times_utc = {"started": started, "finished": utc_now()}
    write_record(path, record)
    return record


def record_failure(bench: Bench, config: RunConfig, reason: str, *, trace: str = "") -> Record:
    """Writes the record of a cell that failed, or that could not speak for itself."""
    path = record_path(bench, config)
    record = _blank(bench, config, run_id=path.parent.name, status="failed")
    record.reason = reason
    record.traceback = trace
    record.environment = {**describe_environment(repository=ROOT), **describe_job()}
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
    made = make_images(bench, config)
    record.seconds = dict(made.seconds)
    record.execution = made.execution
    record.calibration_forwards = made.calibration_forwards
    record.peak_memory_bytes = made.images.notes["peak_memory_bytes"]
    _fill_report(record, made.report, unquantized=bench.float_denoiser)
    if made.kernels.by_layer_class:
        record.execution_by_layer_class = made.kernels.by_layer_class
        record.method_elements["left_out"] = made.kernels.left_out
        record.protocol |= made.kernels.protocol
    _fill_metrics(bench, record, images=made.images, reference=made.reference)
    _fill_step_errors(bench, record, errors=made.step_errors)
    return record


@dataclass(kw_only=True)
class Made:
    """A cell's stages up to its metrics."""

    reference: Stage
    images: Stage
    denoiser: nn.Module | None  # None: the unquantized one
    report: QuantizationReport
    step_errors: torch.Tensor | None
    execution: str = "float"
    calibration_forwards: int = 0
    seconds: dict[str, float]
    kernels: KernelUse


def make_images(bench: Bench, config: RunConfig) -> Made:
    """Everything of a cell that its device decides: what is left are metrics of files."""
    floor, attached = floor_of(config), None
    reference = bench.reference()
    seconds = {"reference": reference.seconds}
    forwards = 0
    if floor is not None or isinstance(config.method, FullPrecision):
        denoiser, name = None, "float"
        calibration = Calibration(statistics={}, forwards=0)
        report = config.method.quantize(
            bench.float_denoiser, calibration=calibration, bits=config.bits
        )
        execution, kernels = "float", KernelUse()
    else:
        stage = bench.quantized(config)
        denoiser, report = bench.load_quantized(config, stage)
        name = bench.quantized_name(config)
        used = _on_kernels(bench, config, denoiser, report)
        execution, kernels = ("kernel" if used.any else report.execution), used
        forwards = stage.notes["forwards"]
        seconds |= {"calibration": stage.notes["calibration_seconds"], "quantize": stage.seconds}
        attached = bench.corrector(config, denoiser)
        if attached is not None:
            note = variance_note(attached.corrector, bench.pipeline.scheduler)
            for left_out in (report.left_out, used.left_out):
                left_out += [] if note is None else [note]
    key = bench.images_key(name, floor=floor)
    images = bench.images(denoiser, key, floor=floor, attached=attached)
    each = images.notes["seconds_per_image"]
    count = len(bench.dataset.evaluation)
    seconds["images"] = images.seconds
    seconds["seconds_per_image"] = images.seconds / count if each is None else each
    return Made(
        reference=reference,
        images=images,
        denoiser=denoiser,
        report=report,
        step_errors=bench.step_errors(denoiser, name, floor=floor),
        execution=execution,
        calibration_forwards=forwards,
        seconds=seconds,
        kernels=kernels,
    )


@dataclass(kw_only=True)
class KernelUse:
    """What of a quantized denoiser runs as products of codes; empty where all is simulated."""

    any: bool = False
    by_layer_class: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)


def _on_kernels(
    bench: Bench, config: RunConfig, denoiser: nn.Module, report: QuantizationReport
) -> KernelUse:
    """Prepares the denoiser for the execution that was asked for."""
    if config.execution == "simulated":
        return KernelUse()
    own_code = config.activation_code == "method"
    calibration = None if own_code else bench.calibration()[1]
    entries = prepare(
        denoiser, config.execution, code=config.activation_code, calibration=calibration
    )
    any_kernel = runs_on_kernels(entries)
    execution = "kernel" if any_kernel else report.execution
    use = KernelUse(
        any=any_kernel,
        by_layer_class=summarize(entries),
        left_out=kernel_left_out(report.left_out, execution),
    )
    if config.fuse_activations:
        use.protocol["fused_activations"] = summarize_fused(fuse_activations(denoiser))
    if calibration is not None:
        use.protocol["activation_code"] = config.activation_code
        use.protocol["extra_products_of_codes"] = extra_products(
            entries, bench.float_denoiser, calibration
        )
    return use


def _fill_report(record: Record, report: QuantizationReport, *, unquantized: nn.Module) -> None:
    record.layers_quantized = report.layers_quantized
    record.layers_kept = [dict(layer) for layer in report.layers_kept]
    record.execution_by_layer_class = {"Linear": record.execution}
    record.effective_bits_per_weight = report.effective_bits_per_weight
    record.extra_macs_fraction = report.extra_macs_fraction
    record.weight_bytes = protocol.stored_bytes(unquantized, report)
    record.search_candidates = report.search_candidates
    record.method_elements = {"included": report.elements, "left_out": report.left_out}
    record.protocol |= protocol.coverage(unquantized, report)


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
