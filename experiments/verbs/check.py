"""`segbench check`: whether a run could start now, what it will take, and what is missing.

Queues and makes nothing, and goes on after the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from typing import Any

from experiments.cell.cell import Cell
from experiments.cell.sweep import Sweep, open_sweep
from experiments.config.parts import in_one_line
from experiments.config.places import config_dirs
from experiments.config.request import read_request
from experiments.errors import UserError
from experiments.readiness.card_plan import plan_for_card
from experiments.readiness.check_lines import Finding, State, found, render, size
from experiments.readiness.machine_findings import (
    device_findings,
    disk_findings,
    memory_findings,
    method_findings,
)
from experiments.readiness.measured_steps import MeasuredSteps, measure_steps
from experiments.readiness.model_findings import room_findings, run_findings, weight_findings
from experiments.readiness.other_files import data_findings, metric_findings
from experiments.readiness.repositories import fetch_command
from experiments.readiness.stage_costs import StageCost
from experiments.readiness.stage_work import StageWork, work_of
from experiments.verbs.answer import Answer
from experiments.verbs.words import add_multirun, quiet

_LARGEST_CARD = 100_000  # GB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_multirun(parser)
    parser.add_argument(
        "--measure", action="store_true", help="time a few steps of each model for the hours"
    )
    parser.add_argument(
        "--card",
        type=float,
        action="append",
        metavar="GB",
        help="instead: the settings with which each cell fits a card of so much; may be repeated",
    )


def run(options: argparse.Namespace) -> Answer:
    """Exit status 2 where something is missing without which no run could start."""
    request = read_request(options.overrides, multirun=options.multirun)
    sweep = open_sweep(request, progress=quiet())
    if options.card:
        return _cards(sweep, options.card)
    fetch = fetch_command(options.overrides, config_dirs=config_dirs())
    findings = [
        *weight_findings(sweep, command=fetch),
        *data_findings(sweep),
        *metric_findings(sweep),
        *method_findings(sweep),
        *run_findings(sweep),
        *device_findings(sweep),
    ]
    ready = not any(finding.state == State.missing for finding in findings)
    works: list[StageWork] = []
    for group in sweep.groups():
        timed = _measured(group, findings) if options.measure and ready else None
        own = found("stages", partial(work_of, group, measured=timed), findings) or []
        findings += memory_findings(group[0].around, list(map(_as_cost, own)))
        works += own
    needed = sum(work.disk_bytes or 0 for work in works)
    findings += [*disk_findings(sweep, needed), *room_findings(sweep)]
    findings += [work.finding() for work in works]
    again = _again(options, measured=options.measure and ready)
    findings += _hours(works, again=again, shards=sweep.config.cluster.shards)
    return _answer(sweep, findings, works)


def _cards(sweep: Sweep, cards: list[float]) -> Answer:
    if wrong := [card for card in cards if not 0 < card < _LARGEST_CARD]:
        raise UserError(f"--card {wrong[0]:g}; give its memory in GB, as 24 or 80")
    plans = [plan_for_card(cell, gigabytes=card) for cell in sweep.cells for card in cards]
    rows = [row for plan in plans for row in plan.rows()]
    return Answer("\n\n".join(plan.describe() for plan in plans), rows)


def _answer(sweep: Sweep, findings: list[Finding], works: list[StageWork]) -> Answer:
    missing = [finding for finding in findings if finding.state == State.missing]
    total = len(sweep.cells)
    cells = f"{total} cell" if total == 1 else f"{total} cells"
    end = f"{cells}: a run can start now"
    if missing:
        end = f"{cells}: {len(missing)} {'thing is' if len(missing) == 1 else 'things are'} missing"
    data: dict[str, Any] = {
        "ready": not missing,
        "findings": [finding.to_dict() for finding in findings],
        "stages": [work.to_dict() for work in works],
    }
    return Answer("\n".join([*render(findings), end]), data, wrong=bool(missing))


def _measured(group: list[Cell], findings: list[Finding]) -> MeasuredSteps | None:
    around = group[0].around
    if not around.makes:
        what = f"{around.config.model.name}: its jobs run elsewhere: check there, cluster=local"
        findings.append(Finding(group="hours", what=what, state=State.unknown))
        return None
    try:
        timed = found("hours", lambda: measure_steps(around), findings)
    except Exception as error:  # no memory, a driver: whatever a run would fail with too
        said = f"{around.config.model.name}: a few steps failed: {in_one_line(error)}"
        findings.append(Finding(group="hours", what=said, state=State.missing))
        return None
    finally:
        around.release()
    if timed is None:
        return None
    what = (
        f"{around.config.model.name}: {timed.seconds_per_forward:.3g} s a forward, "
        f"{timed.seconds_per_image:.3g} s an image of {timed.steps} steps, by one prompt; "
        f"peak {size(timed.peak_memory_bytes)}"
    )
    findings.append(Finding(group="hours", what=what, state=State.note))
    return timed


def _hours(works: list[StageWork], *, again: str, shards: int) -> list[Finding]:
    """The sum, as far as it is known: of all devices together."""
    todo = [work for work in works if work.count > work.there]
    unknown = list(dict.fromkeys(work.stage for work in todo if work.hours is None))
    known = sum(work.hours or 0.0 for work in todo)
    if not unknown:
        what = f"{known:.3g} in all, without metrics"
        if shards > 1:
            what += f"; images and calibrations in {shards} shards take as much between them"
        return [Finding(group="hours", what=what)]
    what = f"unknown of {', '.join(unknown)}"
    if known:
        what = f"{known:.3g} as far as they are known; {what}"
    return [Finding(group="hours", what=what, state=State.unknown, command=again)]


def _again(options: argparse.Namespace, *, measured: bool) -> str:
    """What would tell the hours; quantizing is timed by nothing but a run."""
    if measured:
        return ""
    several = ["-m"] if options.multirun else []
    beside = [word for folder in config_dirs() for word in ("--config-dir", str(folder))]
    words = ["segbench", "check", *several, *options.overrides, *beside, "--measure"]
    return shlex.join(words)


def _as_cost(work: StageWork) -> StageCost:
    return StageCost(
        stage=work.stage,
        device_bytes=work.device_bytes,
        host_bytes=work.host_bytes,
        disk_bytes=work.disk_bytes,
    )
