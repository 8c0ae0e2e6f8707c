"""Every stage of some cells of one model at full size, measured beside what the plan says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evaluation.report.markdown import pipe_table
from experiments.errors import UserError
from experiments.planning.memory_plan import StageMemory, plan_stages
from experiments.planning.traced_shapes import TracedShapes, trace_shapes
from experiments.rehearsal.full_size import denoiser_config, outline, random_calls, write_random
from experiments.rehearsal.rehearsed_stage import Stage, as_json, statistics_plan
from experiments.sampling.model_shapes import keep_layers
from experiments.studies.csv_text import csv_text

if TYPE_CHECKING:
    from experiments.config.run_config import RunConfig
    from segquant.core.method_interface import StatisticsNeeds

_STAGE_PROGRAM = "experiments.rehearsal.rehearsed_stage"


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a calibration is rehearsed."""

    calls: int = 2  # of the denoiser
    batch: int = 1
    scale: int = 4  # of the zoo's smallest inputs: 32 x 32 latents, 24 tokens of text
    gigabytes: float | None = None  # for statistics
    changes: Mapping[str, Any] | None = None  # of the denoiser's config: a number of layers


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage: what the plan said, and what it took."""

    model: str
    method: str  # empty: of all
    bits: str
    stage: str
    seconds: float
    planned_gigabytes: float  # of the stage alone
    peak_gigabytes: float  # the same: above what Python and its libraries held before
    resting_gigabytes: float  # that
    disk_planned_gigabytes: float
    disk_gigabytes: float
    forward_seconds: float | None = None  # of one forward of the quantized denoiser, simulated
    layers_quantized: int | None = None
    layers_kept: int | None = None

    @property
    def off(self) -> float:
        """The peak of the process over what the plan and the process's rest come to, minus one."""
        planned = self.planned_gigabytes + self.resting_gigabytes
        return (self.peak_gigabytes + self.resting_gigabytes) / planned - 1


def rehearse(
    cells: Sequence[RunConfig],
    *,
    words: Sequence[Sequence[str]],
    extent: Extent,
    work: Path,
    note: Callable[[str], None],
) -> list[Row]:
    """Runs every stage of the cells, which are of one model, and measures each.

    Args:
        words: of each cell, as `segbench run` takes them.
        work: a folder for weights, statistics and checkpoints; what this makes there is removed.

    Raises:
        UserError: a method needs what is not rehearsed, the model's config is not here, or there is
            too little disk.
        RuntimeError: a stage failed.
    """
    config = cells[0]
    stage, plans = _planned(cells, words=words, extent=extent, work=work)
    shape, dtype = _shape(config, extent), getattr(torch, config.model.dtype)
    _check_disk(work, plans)
    note(f"{config.model.name}: random weights at full size")
    begun = time.perf_counter()
    written = write_random(shape, work / "weights", dtype=dtype)
    note(f"{written / 1e9:.2f} GB of weights in {time.perf_counter() - begun:.0f} s")
    try:
        rows = [_measured(stage, cells[0], plans[0], note=note, of_all=len(cells) > 1)]
        for cell, own, plan in zip(cells, words, plans, strict=True):
            for kind in ("quantization", "images"):
                told = replace(stage, kind=kind, words=list(own))
                rows.append(_measured(told, cell, plan, note=note))
            shutil.rmtree(work / f"{cell.method_name}-{cell.bits.name}", ignore_errors=True)
    finally:
        shutil.rmtree(work / "weights", ignore_errors=True)
        shutil.rmtree(work / "statistics", ignore_errors=True)
    return rows


def planned_again(
    cells: Sequence[RunConfig],
    *,
    words: Sequence[Sequence[str]],
    extent: Extent,
    lines: Sequence[Mapping[str, str]],
) -> list[dict[str, str]]:
    """Lines of `as_csv` beside what today's plan says of the same stages; others as they are.

    Args:
        lines: as csv.DictReader reads them.
    """
    _, plans = _planned(cells, words=words, extent=extent, work=Path())
    by_row = {
        (cell.method_name, cell.bits.name): plan for cell, plan in zip(cells, plans, strict=True)
    }
    several = len(cells) > 1
    again = []
    for line in lines:
        of_all = not line["method"] and several
        plan = plans[0] if of_all else by_row.get((line["method"], line["bits"]))
        of_one = several and not of_all and line["stage"] == "calibration"
        if plan is None or of_one:  # a calibration for one method alone is another plan's
            again.append(dict(line))
            continue
        planned = plan[line["stage"]]
        resting = float(line["resting_gigabytes"])
        off = (float(line["peak_gigabytes"]) + resting) / (planned.total_bytes / 1e9 + resting) - 1
        again.append(
            {
                **line,
                "planned_gigabytes": _short(planned.total_bytes / 1e9),
                "disk_planned_gigabytes": _short(planned.disk_bytes / 1e9),
                "off": f"{off:.3f}",
            }
        )
    return again


def _planned(
    cells: Sequence[RunConfig], *, words: Sequence[Sequence[str]], extent: Extent, work: Path
) -> tuple[Stage, list[dict[str, StageMemory]]]:
    """What the stages' processes are told, and the plan of each cell."""
    config, needs = cells[0], _needs(cells)
    empty = outline(_shape(config, extent), dtype=getattr(torch, config.model.dtype))
    keep_layers(empty, config.model)
    stage = Stage(
        kind="calibration",
        weights=str(work / "weights"),
        work=str(work),
        words=list(words[0]),
        needs=asdict(needs),
        calls=extent.calls,
        batch=extent.batch,
        scale=extent.scale,
        gigabytes=extent.gigabytes,
    )
    call = next(random_calls(empty, calls=1, batch=stage.batch, scale=stage.scale))
    shapes = trace_shapes(empty, recorded=call, sampled=call)
    return stage, [_plan(cell, shapes, stage=stage) for cell in cells]


def _shape(config: RunConfig, extent: Extent) -> dict[str, Any]:
    try:
        return denoiser_config(config.model.name, extent.changes or {})
    except ValueError as error:
        raise UserError(str(error)) from error


def _needs(cells: Sequence[RunConfig]) -> StatisticsNeeds:
    needs = cells[0].method.needs()
    for cell in cells:
        own = cell.method.needs()
        if own.replay or own.capture_bytes or own.steps:
            raise UserError(
                f"method={cell.method_name} keeps calls or steps of a whole pipeline, which a "
                "rehearsal has none of; rehearse methods that need statistics alone"
            )
        if reason := cell.method.unsupported(cell.bits):
            raise UserError(f"method={cell.method_name} bits={cell.bits.name}: {reason}")
        needs = needs.union(own)
    return needs


def _plan(cell: RunConfig, shapes: TracedShapes, *, stage: Stage) -> dict[str, StageMemory]:
    stages = plan_stages(
        shapes.sizes,
        bits=cell.bits,
        needs=cell.method.needs(),
        statistics=statistics_plan(stage, shapes.groups),
        forward_bytes=shapes.forward_bytes,
        on_cpu=True,
    )
    return {planned.stage: planned for planned in stages}


def _check_disk(work: Path, plans: Sequence[Mapping[str, StageMemory]]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = max(plan["quantization"].disk_bytes for plan in plans)
    weights = plans[0]["reference"].parts["weights"]
    needed = weights + plans[0]["calibration"].disk_bytes + checkpoint
    free = shutil.disk_usage(work).free
    if needed > free:
        raise UserError(
            f"{work}: a rehearsal takes {needed / 1e9:.1f} GB there and {free / 1e9:.1f} GB are "
            "free; give --work a folder with room"
        )


def _measured(
    stage: Stage,
    cell: RunConfig,
    plan: Mapping[str, StageMemory],
    *,
    note: Callable[[str], None],
    of_all: bool = False,
) -> Row:
    label = "of all" if of_all else f"{cell.method_name} {cell.bits.name}"
    planned = plan[stage.kind]
    note(f"{stage.kind} {label}: planned {planned.total_bytes / 1e9:.2f} GB")
    threads = cell.num_threads or len(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", _STAGE_PROGRAM, as_json(stage), str(threads)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"{stage.kind} {label} failed: {lines[-1]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if told.get("finite") is False:
        raise RuntimeError(f"{stage.kind} {label}: the quantized denoiser's output is not finite")
    row = Row(
        model=cell.model.name,
        method="" if of_all else cell.method_name,
        bits="" if of_all else cell.bits.name,
        stage=stage.kind,
        seconds=told["seconds"],
        planned_gigabytes=planned.total_bytes / 1e9,
        peak_gigabytes=(told["peak_bytes"] - told["resting_bytes"]) / 1e9,
        resting_gigabytes=told["resting_bytes"] / 1e9,
        disk_planned_gigabytes=planned.disk_bytes / 1e9,
        disk_gigabytes=told.get("disk_bytes", 0) / 1e9,
        forward_seconds=told.get("forward_seconds"),
        layers_quantized=told.get("layers_quantized"),
        layers_kept=told.get("layers_kept"),
    )
    note(f"{stage.kind} {label}: {row.seconds:.0f} s, {row.peak_gigabytes:.2f} GB ({row.off:+.0%})")
    return row


def as_csv(rows: Sequence[Row]) -> str:
    """A line a stage; numbers to four digits."""
    names = [item.name for item in fields(Row)]
    body = [[*(_short(getattr(row, name)) for name in names), f"{row.off:.3f}"] for row in rows]
    return csv_text([*names, "off"], body)


def render(rows: Sequence[Row]) -> str:
    """The table for a person."""
    head = ["model", "method", "bits", "stage"]
    head += ["seconds", "planned GB", "peak GB", "off", "disk GB"]
    body = [
        [
            row.model,
            row.method or "all",
            row.bits or "all",
            row.stage,
            f"{row.seconds:.0f}",
            f"{row.planned_gigabytes:.2f}",
            f"{row.peak_gigabytes:.2f}",
            f"{row.off:+.0%}",
            f"{row.disk_gigabytes:.2f}",
        ]
        for row in rows
    ]
    return pipe_table(head, body, numeric=[False] * 4 + [True] * 5)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
