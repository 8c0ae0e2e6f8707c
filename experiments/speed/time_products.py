"""`segbench bench-kernels`: every Linear shape of three models, every way through it, by the clock.

Correctness comes first: a candidate that is wrong on fresh random input, or leaves a value of a
poisoned output in place, is not timed but listed with its error. So is one that is simulated.
What the time allowed does not reach is listed as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from experiments.speed import candidates as ways
from experiments.speed.full_sizes import Shape, shapes
from experiments.speed.libraries import peers
from experiments.speed.machine_state import machine_state
from experiments.speed.session import Session, failed
from experiments.speed.setting import SMALL_ROWS, Candidate, Setting
from experiments.speed.timing import Timer, ceilings, poison
from segquant.kernels import ActivationCode
from segquant.kernels.choice import has_triton

TILED = (ActivationCode.symmetric, ActivationCode.dual)
# Shapes that come first and get the extras and all tiles: most of the models' time is there.
HEAVIEST = 6
COMPILED = 20  # and these what torch.compile makes of 16 bit and of the library's product


def bench(session: Session) -> dict[str, Any]:
    """All measurements as JSON."""
    device, small = session.device, session.small
    timer = Timer(device=device, budget_seconds=session.budget_seconds)
    merged = merge([shape for model in session.models for shape in shapes(model, small=small)])
    result = session.begin("segbench bench-kernels") | {
        "capability": _capability(device),
        "triton": has_triton(),
        "ceilings": ceilings(timer, small=small),
        "shapes": [],
        "not_measured": [],
    }
    for number, shape in enumerate(merged):
        if timer.left <= 0:
            result["not_measured"].append(shape.name)
            continue
        most = session.compiled and number < COMPILED
        entry = measure(shape, timer=timer, compiled=most, deep=number < HEAVIEST)
        result["shapes"].append(entry)
    result["machine_after"] = machine_state(session.device)
    result["seconds"] = session.budget_seconds - timer.left
    return result


def merge(of_models: Sequence[Shape]) -> list[Shape]:
    """Equal shapes of several models once, heaviest (operations times number) first."""
    kept: dict[tuple[int, int, int, str], Shape] = {}
    for shape in of_models:
        key = (shape.rows, shape.in_features, shape.out_features, shape.after)
        kept.setdefault(key, shape)
    return sorted(kept.values(), key=lambda shape: -shape.flop * shape.count)


def _capability(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def measure(shape: Shape, *, timer: Timer, compiled: bool, deep: bool) -> dict[str, Any]:
    """One shape: every candidate checked, then timed."""
    setting = Setting(shape=shape, device=timer.device, compiled=compiled)
    checked = ways.candidates(setting) + peers(setting) + ways.encoders(setting)
    if deep:
        checked += ways.extras(setting)
        for code in TILED:
            checked += ways.tiles(setting, code)
    rows = [_row(candidate, shape, timer) for candidate in checked]
    torch._dynamo.reset()
    return {**asdict(shape), "name": shape.name, "rows_measured": rows}


def _row(candidate: Candidate, shape: Shape, timer: Timer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": candidate.name,
        "what": candidate.what,
        "execution": candidate.execution,
        "products": candidate.products,
    }
    try:
        error = check(candidate, timer.device)
    except Exception as raised:  # a library that refuses a shape is a finding, not the end
        return row | failed(raised)
    row["error"] = error
    if not error <= candidate.tolerance:
        reason = f"off by {error:.2g} of the largest value, allowed {candidate.tolerance:.2g}"
        return row | {"status": "wrong", "reason": reason}
    if candidate.execution == "simulated":
        return row | {"status": "simulated", "reason": "no speed: it is simulated here"}
    if timer.left <= 0:
        return row | {"status": "not measured", "reason": "out of time"}
    taken = timer.measure(candidate.call)
    return row | {"status": "ok", **asdict(taken), "per_second": shape.flop / taken.seconds}


def check(candidate: Candidate, device: torch.device) -> float:
    """Largest difference to float64 over the largest value; NaN where a value was never written."""
    first = candidate.call()
    shape, dtype = tuple(first.shape), first.dtype
    del first
    poison(shape, dtype=dtype, device=device)
    output = candidate.call().double()
    expected = candidate.expected()
    difference = float((output.reshape(expected.shape) - expected).abs().amax())
    return difference / max(float(expected.abs().amax()), 1e-30)


def seconds_of(entry: dict[str, Any], *names: str) -> float | None:
    """The least time of the rows named, of those that were measured."""
    taken = [
        row["seconds"]
        for row in entry["rows_measured"]
        if row["name"] in names and row["status"] == "ok"
    ]
    return min(taken, default=None)


SIXTEEN_BIT = ("bf16", "bf16 compiled")


def speed_table(result: dict[str, Any]) -> dict[str, Any]:
    """What `segquant/kernels/table.json` says of this device: per shape the fastest of our ways."""
    shapes: dict[str, list[dict[str, Any]]] = {}
    for entry in result["shapes"]:
        own = seconds_of(entry, "symmetric")
        library = seconds_of(entry, "_int_mm + epilogue")
        float_seconds = seconds_of(entry, *SIXTEEN_BIT)
        if own is None or float_seconds is None:
            continue
        chosen = min(own, library if library is not None else math.inf)
        few = entry["rows"] <= SMALL_ROWS
        way = "int_mm" if library == chosen else "triton_small" if few else "triton"
        key = f"{entry['out_features']}x{entry['in_features']}"
        shapes.setdefault(key, []).append(
            {
                "rows": entry["rows"],
                "way": way,
                "ratio_to_bf16": round(float_seconds / chosen, 3),
            }
        )
    return {result["capability"]: shapes}


def mean_ratio(result: dict[str, Any], model: str, name: str) -> float | None:
    """Geometric mean of bf16's time over a way's, weighted by number and operations of layers."""
    total, weight = 0.0, 0.0
    for entry in result["shapes"]:
        own, other = seconds_of(entry, name), seconds_of(entry, *SIXTEEN_BIT)
        if entry["model"] != model or own is None or other is None:
            continue
        share = entry["count"] * other
        total += share * math.log(other / own)
        weight += share
    return math.exp(total / weight) if weight else None
