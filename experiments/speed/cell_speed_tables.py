"""The speed of a sweep's cells as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evaluation.report.markdown import escape, pipe_table
from experiments.speed.machine_state import state_text
from experiments.studies.csv_text import csv_text

Row = dict[str, Any]
NOT_APPLICABLE, UNKNOWN = "n/a", "-"
_MEGABYTE = 1e6


def _number(key: str, *, scale: float = 1.0, digits: int = 4) -> Callable[[Row], str]:
    def tell(row: Row) -> str:
        value = row.get(key)
        return UNKNOWN if value is None else f"{value / scale:.{digits}g}"

    return tell


def _latency(what: str) -> Callable[[Row], str]:
    def tell(row: Row) -> str:
        times = row.get(what)
        if not times:
            return UNKNOWN
        parts = (f"{times[f'{end}_seconds'] * 1e3:.4g}" for end in ("median", "p10", "p90"))
        median, low, high = parts
        return f"{median} [{low}, {high}] ({times['repeats']})"

    return tell


COLUMNS: dict[str, Callable[[Row], str]] = {
    "step ms": _latency("step"),
    "best fp step / this": _number("step_ratio", digits=3),
    "image ms": _latency("image"),
    "best fp image / this": _number("image_ratio", digits=3),
    "compile s": _number("compile_seconds", digits=3),
    "peak MB allocated": _number("peak_allocated_bytes", scale=_MEGABYTE),
    "peak MB reserved": _number("peak_reserved_bytes", scale=_MEGABYTE),
    "peak MB resident": _number("peak_resident_bytes", scale=_MEGABYTE),
    "MB on device": _number("device_bytes", scale=_MEGABYTE),
    "MB on disk": _number("disk_bytes", scale=_MEGABYTE),
    "J an image": _number("joules_per_image"),
}
_NAMES = ("model", "method", "bits", "mode", "batch")
THEORY = "theoretical weight MB"


def cells_markdown(result: Row) -> str:
    """What was measured, on what, and every row; n/a where a time would say nothing."""
    head = [*_NAMES, *COLUMNS, THEORY, "execution"]
    body = [[*_names(row), *_cells(row), _theory(row), _execution(row)] for row in result["rows"]]
    numeric = [name not in (*_NAMES[:4], "execution") for name in head]
    reasons = dict.fromkeys(
        f"{row['method']} {row['bits']}{_mode(row)}: {row['status']}, {row['reason']}"
        for row in result["rows"]
        if row["status"] != "ok"
    )
    return "\n".join(
        [
            *_heading(result),
            pipe_table(head, body, numeric=numeric),
            "",
            *(f"- {escape(reason)}" for reason in reasons),
            *([""] if reasons else []),
            *_legend(result),
        ]
    )


def _heading(result: Row) -> list[str]:
    environment = result["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)
    on_gpu = result["device_kind"] == "cuda"
    device = environment["device"] if on_gpu else environment["cpu"]
    git = environment["git"] or {}
    lines = [
        "# Speed of denoisers and pipelines",
        "",
        f"`{result['command']}`",
        "",
        f"On {device}, {result['num_threads']} thread(s), {result['started_utc']}; {versions}; "
        f"commit {str(git.get('commit'))[:8]}{' and changes' if git.get('dirty') else ''}.",
        f"Before: {state_text(result['machine_before'])}; after: "
        f"{state_text(result['machine_after'])}.",
    ]
    if result["not_calm"]:
        lines.append(f"**Not a calm machine: {'; '.join(result['not_calm'])}.**")
    if not on_gpu:
        lines.append("This is no GPU: nothing here says how fast a method is on one.")
    return [*lines, ""]


def _legend(result: Row) -> list[str]:
    bases = dict.fromkeys(
        f"batch {row['batch']}: {what} by {row[f'{what}_baseline']}"
        for row in result["rows"]
        for what in ("step", "image")
        if row.get(f"{what}_baseline")
    )
    energy = dict.fromkeys(row["note"] for row in result["rows"] if row.get("note"))
    return [
        "`step`: one call of the denoiser; `image`: text encoders, all steps and VAE, an image of "
        "the batch. Median [p10, p90] (repeats) after "
        "10 warm-ups of a step and 2 of an image. `compile s` is the first call of the compiled "
        "denoiser (torch.compile, default mode, static shapes) and in no other figure.",
        f"Best unquantized: {'; '.join(bases) or 'not measured'}.",
        "`MB on device`: all tensors of the denoiser, scales among them; `MB on disk`: its files, "
        "fp's in the type in which they were published. `peak MB resident` is of "
        "the whole process, libraries included. "
        f"Energy: {'; '.join(energy) or 'not measured'}.",
        f"`n/a`: a simulated row multiplies floats, so its time, memory and energy say nothing; "
        f"`{THEORY}` is computed from its bits and measures nothing. Cells were measured in random "
        f"order (seed {result['order_seed']}), each in a process of its own.",
        "",
    ]


def _names(row: Row) -> list[str]:
    return [str(row.get(name, UNKNOWN)) for name in _NAMES]


def _mode(row: Row) -> str:
    return f" {row['mode']} at batch {row['batch']}" if "mode" in row else ""


def _cells(row: Row) -> list[str]:
    if row["status"] == "simulated":
        return [NOT_APPLICABLE] * len(COLUMNS)
    return [tell(row) for tell in COLUMNS.values()]


def _theory(row: Row) -> str:
    return _number("theoretical_bytes", scale=_MEGABYTE)(row)


def _execution(row: Row) -> str:
    return str(row.get("execution", row["status"]))


def cells_csv(result: Row) -> str:
    """A line a row, times apart in seconds."""
    keys = ["step_ratio", "step_baseline", "image_ratio", "image_baseline", "compile_seconds"]
    keys += ["peak_allocated_bytes", "peak_reserved_bytes", "peak_resident_bytes"]
    keys += ["device_bytes", "disk_bytes", "theoretical_bytes", "joules_per_image", "note"]
    ends = ("median_seconds", "p10_seconds", "p90_seconds", "repeats", "warmups")
    machine = {
        "device": result["environment"]["device"],
        "torch": result["environment"]["packages"]["torch"],
        "load_before": result["machine_before"]["load"],
    }
    named = [*_NAMES, "dtype", "offload", "execution", "status", "reason", "order"]
    head = [*named, *(f"{what}_{end}" for what in ("step", "image") for end in ends)]
    lines = []
    for row in result["rows"]:
        times = [(row.get(what) or {}).get(end) for what in ("step", "image") for end in ends]
        known = [row.get(name) for name in named]
        lines.append([*known, *times, *(row.get(key) for key in keys), *machine.values()])
    return csv_text([*head, *keys, *machine], lines)
