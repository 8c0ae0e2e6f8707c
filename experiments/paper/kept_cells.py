"""The records of an experiment in one small file, from which its table is made again.

What tables do not read is left out (layers, environment, stages); scores have seven digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.records import Record, decode_metric, encode_record
from evaluation.report.rows import DRAW, SHARED_PROTOCOL_FIELDS, Scored
from experiments.errors import UserError

KEPT = "cells.json"
_DIGITS = 7
_PROTOCOL = (
    *SHARED_PROTOCOL_FIELDS,
    *(DRAW, "calibration_prompts", "calibration_seed", "n", "activation_dynamic"),
    *("weight_granularity", "activation_granularity", "dataset"),
    *("linears_quantized", "linears_kept", "linear_weights_quantized_fraction"),
)
_DROPPED: dict[str, Any] = {
    "layers_quantized": [],
    "layers_kept": [],
    "environment": {},
    "stages": {},
    "files": {},
    "times_utc": {},
    "traceback": "",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Cells with a record, and the names (model, method, bits) of those without one."""

    cells: tuple[Scored, ...]
    missing: tuple[tuple[str, str, str], ...] = ()


def kept_text(cells: Sequence[Scored], missing: Sequence[tuple[str, str, str]]) -> str:
    """The file's text: a line a cell."""
    lines = [json.dumps(_encoded(cell), sort_keys=True) for cell in cells]
    names = json.dumps([list(one) for one in missing])
    return '{"cells": [\n' + ",\n".join(lines) + f'\n], "missing": {names}}}\n'


def read_kept(path: Path) -> Kept:
    """What `kept_text` gave.

    Raises:
        UserError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple(_decoded(one, where=str(path)) for one in content["cells"])
        missing = tuple((one[0], one[1], one[2]) for one in content["missing"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: no kept cells ({' '.join(str(error).split())})") from error
    return Kept(cells=cells, missing=missing)


def _encoded(cell: Scored) -> dict[str, Any]:
    protocol = {k: v for k, v in cell.record.protocol.items() if k in _PROTOCOL}
    record = encode_record(replace(cell.record, protocol=protocol))
    scores = {
        column: {name: float(f"{value:.{_DIGITS}g}") for name, value in by_prompt.items()}
        for column, by_prompt in cell.scores.items()
    }
    return {"record": {**record, **_DROPPED}, "scores": scores}


def _decoded(content: dict[str, Any], *, where: str) -> Scored:
    fields = dict(content["record"])
    metrics = {
        name: decode_metric(value, where=where) for name, value in fields.pop("metrics").items()
    }
    return Scored(record=Record(**fields, metrics=metrics), scores=content["scores"])
