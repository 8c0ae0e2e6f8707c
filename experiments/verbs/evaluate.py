"""`segbench evaluate`: the metrics of a sweep again, from the images on disk."""

from __future__ import annotations

import argparse

from evaluation.records import Record, encode_record
from experiments.cell.cell import Cell
from experiments.cell.mirror import log_sweep, run_mirrored
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import write_report
from experiments.verbs.words import add_recorded, no_record, recorded_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recorded(parser)


def run(options: argparse.Namespace) -> Answer:
    """Samples nothing: a cell that has no images yet is said and left alone."""
    sweep = recorded_sweep(options)
    records: list[Record] = []
    missing, failed = [], False
    for cell in sweep.cells:
        current = cell.record()
        if current is not None:
            records.append(current)
        elif not _can_be_measured(cell):
            missing.append(cell)
        else:
            sweep.progress.cell(cell.label)
            record, _ = run_mirrored(cell)
            failed = failed or record.status == "failed"
            sweep.progress.note(f"{cell.label}: {record.status}, measured")
            records.append(record)
    if not records:
        raise no_record(sweep)
    for cell in missing:
        sweep.progress.note(f"{cell.label}: no images yet; segbench run makes them")
    report = write_report(sweep, records)
    for path in report.files:
        sweep.progress.note(f"wrote {path}")
    reason = log_sweep(sweep, report.files)
    if reason:
        sweep.progress.note(f"{sweep.name}: {reason}")
    data = [encode_record(record) for record in records]
    return Answer(report.markdown, data, failed=failed)


def _can_be_measured(cell: Cell) -> bool:
    """Whether its images and step errors are there, whatever became of its record."""
    if cell.unsupported is not None:
        return False
    stages = [cell.reference, cell.images, cell.quantized, cell.step_errors]
    return all(stage.find() is not None for stage in stages if stage is not None)
