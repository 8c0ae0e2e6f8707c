"""The records of an experiment in one small file, from which its table is made again.

What tables do not read is left out (layers, environment, stages, metrics without a column);
scores have six digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.metrics.flat_images import FlatImages
from evaluation.records import Record, decode_metric, encode_record
from evaluation.report.columns import (
    CODE_PRODUCTS,
    IDENTICAL,
    default_columns,
)
from evaluation.report.rows import DRAW, SHARED_PROTOCOL_FIELDS, UNQUANTIZED, Scored
from experiments.config.naming import names
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.paper.paper_setup import config_of

KEPT = "cells.json"
_DIGITS = 6
_PROTOCOL = (
    *SHARED_PROTOCOL_FIELDS,
    *(DRAW, "calibration_prompts", "calibration_seed", "n", "activation_dynamic"),
    *("weight_granularity", "activation_granularity", "dataset"),
    CODE_PRODUCTS,
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


def kept_text(cells: Sequence[Scored]) -> str:
    """The file's text: a line a cell."""
    lines = [json.dumps(_encoded(cell), sort_keys=True) for cell in cells]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def read_kept(path: Path) -> list[Scored]:
    """What `kept_text` gave.

    Raises:
        UserError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [_decoded(one, where=str(path)) for one in content]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no kept cells ({' '.join(str(error).split())})") from error


def missing_of(cells: Sequence[Scored], configs: Sequence[RunConfig]) -> list[tuple[str, str, str]]:
    """The names of the configs that no kept cell is of."""
    records = [cell.record for cell in cells]
    return [
        names(config)
        for config in configs
        if not any(_is_drawn_as(record, config) for record in records)
    ]


def _is_drawn_as(record: Record, config: RunConfig) -> bool:
    if config_of(record, [config]) is None:
        return False
    if record.method in UNQUANTIZED:
        return True
    drawn = (record.protocol.get("calibration_seed"), record.protocol.get("calibration_prompts"))
    return drawn == (config.dataset.calibration_seed, config.dataset.calibration_prompts)


def _encoded(cell: Scored) -> dict[str, Any]:
    columns = [column for column in default_columns([cell.record]) if column.metric]
    kept = {column.metric for column in columns} | {FlatImages.name}
    kept |= {f"{name}{IDENTICAL}" for name in kept}
    protocol = {k: v for k, v in cell.record.protocol.items() if k in _PROTOCOL}
    metrics = {name: value for name, value in cell.record.metrics.items() if name in kept}
    record = encode_record(replace(cell.record, protocol=protocol, metrics=metrics))
    compared = {column.per_image: None for column in columns if column.per_image in cell.scores}
    ids = dict.fromkeys(name for column in compared for name in cell.scores[column])
    scores = {
        column: [_shortened(cell.scores[column].get(name)) for name in ids] for column in compared
    }
    return {"record": {**record, **_DROPPED}, "ids": list(ids), "scores": scores}


def _shortened(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")


def _decoded(content: dict[str, Any], *, where: str) -> Scored:
    fields = dict(content["record"])
    metrics = {
        name: decode_metric(value, where=where) for name, value in fields.pop("metrics").items()
    }
    scores = {
        column: {
            name: float(value)
            for name, value in zip(content["ids"], values, strict=True)
            if value is not None
        }
        for column, values in content["scores"].items()
    }
    return Scored(record=Record(**fields, metrics=metrics), scores=scores)
