"""Quantized rows against the best unquantized one: eager or compiled, whichever is faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
FLOAT_METHOD = "fp"
WHAT = ("step", "image")


def best_unquantized(rows: Sequence[Row], *, what: str, batch: int) -> Row | None:
    """The fastest measured row of fp; None where there is none."""
    known = [
        row
        for row in rows
        if row["method"].split()[0] == FLOAT_METHOD
        and row["status"] == "ok"
        and row["batch"] == batch
        and row.get(what)
    ]
    return min(known, key=lambda row: _seconds(row, what), default=None)


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Each timed row with the best unquantized time over its own, and which that was."""
    told = []
    for row in rows:
        more: Row = {}
        for what in WHAT if row["status"] == "ok" else ():
            same_model = [other for other in rows if other["model"] == row["model"]]
            best = best_unquantized(same_model, what=what, batch=row["batch"])
            if best is not None and row.get(what):
                more[f"{what}_ratio"] = _seconds(best, what) / _seconds(row, what)
                more[f"{what}_baseline"] = f"fp {best['mode']}, {best['dtype']}"
        told.append(row | more)
    return told


def _seconds(row: Row, what: str) -> float:
    return float(row[what]["median_seconds"])
