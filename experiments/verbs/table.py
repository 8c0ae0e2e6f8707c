"""`segbench table`: the table of a sweep again, from its records."""

from __future__ import annotations

import argparse
import sys

from evaluation.records import encode_record
from evaluation.report.render import FORMATS
from experiments.verbs.answer import Answer
from experiments.verbs.report_files import tell_outdated, write_report
from experiments.verbs.words import add_recorded, no_record, recorded_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recorded(parser)
    parser.add_argument("--format", choices=tuple(FORMATS), default="md")


def run(options: argparse.Namespace) -> Answer:
    """Looks at records alone: nothing is measured, whatever code has changed since."""
    sweep = recorded_sweep(options)
    records = [record for record in sweep.records() if record.status != "failed"]
    if not records:
        raise no_record(sweep)
    report = write_report(sweep, records)
    tell_outdated(sweep)
    sys.stderr.write("".join(f"wrote {path}\n" for path in report.files))
    text = FORMATS[options.format](report.table)
    return Answer(text, [encode_record(record) for record in records])
