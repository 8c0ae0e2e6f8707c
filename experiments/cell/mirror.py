"""A cell, its stages and its sweep in Weights & Biases: a mirror, never read back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluation.records import Record
from evaluation.report.tracked_run import (
    FilesOf,
    Findings,
    PromptRow,
    TrackedRun,
    curve_of,
    metric_key,
    record_config,
    record_findings,
)
from evaluation.report.tracked_view import save_view
from evaluation.report.tracking import TrackingSettings, tracked
from experiments.cell.calibration_pass import calibration_of
from experiments.cell.cell import RECORD, SCORES, Cell
from experiments.cell.run_cell import run_cell
from experiments.cell.stage import Stage
from experiments.cell.sweep import Sweep
from experiments.config.describe import describe_config
from experiments.store.digests import digest, file_digest
from experiments.store.folders import Finished, write_text

log = logging.getLogger(__name__)


def run_mirrored(cell: Cell, *, run: Callable[[Cell], Record] = run_cell) -> tuple[Record, str]:
    """Runs a cell while its W&B run is open, which sees processor, memory and GPU meanwhile.

    Returns:
        The record, and why it is not mirrored (an empty string where it is).
    """
    settings = _settings(cell)
    if settings.mode == "disabled":
        return run(cell), ""
    with tracked(_cells_run(cell), settings=settings, folder=cell.folder, system=True) as opened:
        record = run(cell)
        try:
            findings = _findings(cell, record, rows=settings.max_images)
            config = record_config(record, config=describe_config(cell.config))
            opened.tell(findings, config=config)
        except Exception as error:  # a damaged file that only the mirror wants costs nothing
            opened.reason = f"not mirrored: {type(error).__name__}: {error}"
    if record.status == "ok" and not opened.reason:
        try:
            _mirror_stages(cell, settings)
        except Exception as error:
            log.warning("stages not mirrored: %s: %s", type(error).__name__, error)
    return record, opened.reason


def _settings(cell: Cell) -> TrackingSettings:
    given = cell.config.logger
    return TrackingSettings(
        mode=given.mode, project=given.project, entity=given.entity, max_images=given.images
    )


def _cells_run(cell: Cell) -> TrackedRun:
    config = cell.config
    return TrackedRun(
        id=cell.run_id,
        name=f"{' '.join(cell.names)} seed{config.seed}",
        group=config.group,
        job_type="metrics",
        tags=(config.model.name, config.method_name, config.bits.name, config.dataset.name),
        config={"given": describe_config(config)},
    )


def _findings(cell: Cell, record: Record, *, rows: int) -> Findings:
    findings = record_findings(record)
    files = {RECORD: cell.folder / RECORD}
    if record.status == "ok":
        scores = cell.read_scores(record)
        prompts = cell.around.dataset.evaluation[:rows]
        findings.prompts = [
            PromptRow(
                prompt_id=prompt.id,
                prompt=prompt.shown,
                reference=cell.reference.folder / f"{prompt.id}.png",
                image=cell.images.folder / f"{prompt.id}.png",
                scores={c: each[prompt.id] for c, each in scores.items() if prompt.id in each},
            )
            for prompt in prompts
        ]
        errors = None if cell.step_errors is None else cell.step_errors.find()
        if cell.step_errors is not None and errors is not None:
            findings.curve = curve_of(cell.step_errors.by_prompt(errors))
        files[SCORES] = cell.scores_path
    findings.artifact = FilesOf(
        name=f"record-{record.run_id}",
        type="record",
        files={name: path for name, path in files.items() if path.is_file()},
        metadata={k: getattr(record, k) for k in ("model", "method", "bits", "dataset", "status")},
    )
    return findings


def _mirror_stages(cell: Cell, settings: TrackingSettings) -> None:
    """A short run for each stage that cells share, once; what it took and what decided it."""
    stages: dict[str, tuple[str, Stage]] = {"reference": ("images", cell.reference)}
    if cell.quantized is not None:
        stages["calibration"] = ("calibration", calibration_of(cell.around))
        stages["quantized denoiser"] = ("quantization", cell.quantized)
    if cell.images.hash != cell.reference.hash:
        stages["images"] = ("images", cell.images)
    for name, (job_type, stage) in stages.items():
        folder = cell.around.store.root / "mirror" / stage.hash
        told = _told(folder, settings)
        finished = None if told.exists() else stage.find()
        if finished is None:
            continue
        own = cell.config.model.name if name in ("reference", "calibration") else cell.label
        run = TrackedRun(
            id=stage.hash,
            name=f"{own} {name}",
            group=cell.config.group,
            job_type=job_type,
            tags=(cell.config.model.name,),
            config={"stage": stage.kind, "fields": stage.fields()},
        )
        with tracked(run, settings=settings, folder=folder) as opened:
            opened.tell(_costs(finished))
        if not opened.reason:
            write_text(told, "")


def _costs(finished: Finished) -> Findings:
    summary: dict[str, float | str] = {"cost/seconds": finished.seconds, "status": "ok"}
    if finished.peak_memory_bytes is not None:
        summary["cost/peak_memory_bytes"] = finished.peak_memory_bytes
    numbers = {
        name: value
        for name, value in finished.notes.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Findings(summary=summary | {f"cost/{name}": v for name, v in numbers.items()})


def log_sweep(sweep: Sweep, files: Sequence[Path]) -> str:
    """The sweep's run: its table, contact sheets and all of its report's files as an artifact.

    What was told before from this store, and is the same, is not told again.

    Returns:
        Why it is not mirrored, or has no saved view; an empty string where all went well.
    """
    settings = _settings(sweep.cells[0])
    if settings.mode == "disabled":
        return ""
    try:
        return _log_sweep(sweep, files, settings)
    except Exception as error:  # the report on disk is complete without it
        return f"not mirrored: {type(error).__name__}: {error}"


def _log_sweep(sweep: Sweep, files: Sequence[Path], settings: TrackingSettings) -> str:
    ids = sorted(cell.run_id for cell in sweep.cells)
    run = TrackedRun(
        id=digest({"report": sweep.name, "cells": ids}),
        name=f"{sweep.name} report",
        group=sweep.config.group,
        job_type="report",
        tags=(sweep.name,),
        config={"experiment": sweep.name, "cells": ids},
    )
    findings = Findings(
        summary={"cells": len(ids), "status": "ok"},
        tables={f"tables/{path.stem}": path for path in files if path.suffix == ".csv"},
        pictures={f"pictures/{path.stem}": path for path in files if path.suffix == ".png"},
        artifact=FilesOf(
            name=f"report-{run.id}", type="report", files={path.name: path for path in files}
        ),
    )
    folder = sweep.store.root / "mirror" / run.id
    told = _told(folder, settings)
    content = digest({path.name: file_digest(path) for path in files})
    if told.is_file() and told.read_text() == content:
        return ""
    unsaved = ""
    with tracked(run, settings=settings, folder=folder) as opened:
        opened.tell(findings)
        if opened.entity is not None and not opened.reason:
            unsaved = save_view(
                run.group,
                entity=opened.entity,
                project=settings.project,
                metrics=_shown_metrics(sweep.records()),
                kept=folder / f"view-{settings.project}.json",
            )
    if not opened.reason:
        write_text(told, content)
    return opened.reason or unsaved


def _told(folder: Path, settings: TrackingSettings) -> Path:
    """The mark of what was mirrored from here."""
    return folder / f"told-{settings.mode}-{settings.project}"


def _shown_metrics(records: Sequence[Record]) -> list[str]:
    """Keys of all metrics that some record has a number for."""
    with_numbers = (
        metric_key(name, metric)
        for record in records
        for name, metric in record.metrics.items()
        if metric.value is not None
    )
    return sorted(set(with_numbers))
