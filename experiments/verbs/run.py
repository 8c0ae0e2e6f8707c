"""`segbench run`: one cell, or a sweep, here or as jobs."""

from __future__ import annotations

import argparse
import time

from evaluation.records import Record, encode_record
from experiments.cell.cell import Cell
from experiments.cell.mirror import log_sweep, run_mirrored
from experiments.cell.progress import duration
from experiments.cell.sweep import Sweep, open_sweep
from experiments.config.request import read_request
from experiments.verbs.answer import Answer
from experiments.verbs.jobs import describe_jobs, run_as_jobs
from experiments.verbs.report_files import write_report
from experiments.verbs.words import add_follow, add_multirun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_multirun(parser, "key=a,b means both")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost")
    add_follow(parser)


def run(options: argparse.Namespace) -> Answer:
    begun = time.perf_counter()
    sweep = open_sweep(read_request(options.overrides, multirun=options.multirun))
    sweep.check()
    for line in sweep.warnings():
        sweep.progress.note(line)
    if sweep.config.cluster.jobs is not None:
        return describe_jobs(sweep) if options.dry_run else run_as_jobs(sweep, options.follow)
    if options.dry_run:
        return _describe_plan(sweep)
    sweep.progress.expect(sweep.plan().prompts)
    records = sweep.run(
        finished=lambda *told: _tell(sweep, *told), run=lambda cell: _run_cell(sweep, cell)
    )
    report = write_report(sweep, records, makes=True)
    count, noun = len(records), "cell" if len(records) == 1 else "cells"
    sweep.progress.note(f"{count} {noun} in {duration(time.perf_counter() - begun)}")
    for path in report.files:
        sweep.progress.note(f"wrote {path}")
    reason = log_sweep(sweep, report.files)
    if reason:
        sweep.progress.note(f"{sweep.name}: {reason}")
    return Answer(
        text=report.markdown,
        data=[encode_record(record) for record in records],
        failed=any(record.status == "failed" for record in records),
    )


def _run_cell(sweep: Sweep, cell: Cell) -> Record:
    record, reason = run_mirrored(cell)
    if reason:
        sweep.progress.note(f"{cell.label}: {reason}")
    return record


def _tell(sweep: Sweep, cell: Cell, record: Record, fresh: bool) -> None:
    label = f"{record.model} {record.method_label} {record.bits_label}"
    state = record.status if fresh else f"{record.status} (found)"
    sweep.progress.note(f"{label}: {state}{': ' + record.reason if record.reason else ''}")


def _describe_plan(sweep: Sweep) -> Answer:
    plan = sweep.plan()
    rows = [
        {"state": state, **dict(zip(("model", "method", "bits"), cell.names, strict=True))}
        for cell, state in zip(sweep.cells, plan.states, strict=True)
    ]
    steps = max(cell.config.model.num_inference_steps for cell in sweep.cells)
    lines = [" ".join(f"{row[key]:<18}" for key in row).rstrip() for row in rows]
    cost = f"{plan.prompts} prompts to sample, {plan.prompts * steps} denoiser steps"
    data = {"cells": rows, "prompts": plan.prompts, "denoiser_steps": plan.prompts * steps}
    return Answer(text="\n".join([*lines, cost]), data=data)
