"""`segbench rehearse`: a model at full size here, with random weights and few tokens."""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.overrides import key_of
from experiments.config.places import options, read_yaml
from experiments.config.request import read_request
from experiments.errors import UserError
from experiments.rehearsal.rehearsal import Extent, Row, as_csv, planned_again, rehearse, render
from experiments.verbs.answer import Answer
from experiments.verbs.words import quiet

if TYPE_CHECKING:
    from experiments.config.run_config import RunConfig

_LISTED = ("method", "bits")
_IDENTITY = ("model", "method", "bits", "stage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=2, help="of the denoiser in the calibration")
    parser.add_argument("--batch", type=int, default=1, help="samples of a call")
    parser.add_argument("--scale", type=int, default=4, help="of a sample: latents of 8 x this")
    parser.add_argument("--gigabytes", type=float, help="for the calibration's statistics")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="another value of a field of the denoiser's config, as num_layers=1",
    )
    parser.add_argument("--work", type=Path, help="folder for weights and statistics; a new one")
    parser.add_argument(
        "--replan", action="store_true", help="measure nothing: today's plan beside --out's rows"
    )
    parser.add_argument("--out", type=Path, help="folder for MODEL.csv; rows there are replaced")


def run(given: argparse.Namespace) -> Answer:
    for name in ("calls", "batch", "scale"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name} {getattr(given, name)}; give at least 1")
    words = [word for word in given.overrides if key_of(word) not in _LISTED]
    if not any(key_of(word) == "model" for word in words):
        raise UserError("rehearse takes model=NAME: one of the real models of segbench models")
    methods = _listed(given.overrides, "method", "segquant_a")
    own = [
        [*_fitting(words, method, methods), f"method={method}", f"bits={bits}"]
        for method in methods
        for bits in _listed(given.overrides, "bits", "w8a8_int8")
    ]
    cells = [read_request(each, multirun=False).cells[0] for each in own]
    extent = Extent(
        calls=given.calls,
        batch=given.batch,
        scale=given.scale,
        gigabytes=given.gigabytes,
        changes=_changes(given.config),
    )
    note = quiet().note
    if given.replan:
        return _replan(given, cells, own, extent)
    if given.work is not None:
        rows = rehearse(cells, words=own, extent=extent, work=given.work, note=note)
    else:
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as work:
            rows = rehearse(cells, words=own, extent=extent, work=Path(work), note=note)
    if given.out is not None:
        note(f"wrote {write_rows(rows, given.out, changed=bool(given.config))}")
    data = [{**asdict(row), "off": row.off} for row in rows]
    return Answer(render(rows), data)


def _replan(
    given: argparse.Namespace,
    cells: Sequence[RunConfig],
    words: Sequence[Sequence[str]],
    extent: Extent,
) -> Answer:
    path = (
        None
        if given.out is None
        else _file(cells[0].model.name, given.out, changed=bool(given.config))
    )
    if path is None or not path.is_file():
        raise UserError(f"--replan rewrites {path or 'a file of --out'}, which is not there")
    lines = list(csv.DictReader(path.read_text().splitlines()))
    again = planned_again(cells, words=words, extent=extent, lines=lines)
    _write_lines(again, path)
    return Answer("\n".join(",".join(line.values()) for line in again), again)


def _file(model: str, folder: Path, *, changed: bool) -> Path:
    return folder / f"{model}{'_part' if changed else ''}.csv"


def _listed(words: Sequence[str], key: str, default: str) -> list[str]:
    given = [word.partition("=")[2] for word in words if key_of(word) == key]
    return given[-1].split(",") if given else [default]


def _fitting(words: Sequence[str], method: str, methods: Sequence[str]) -> list[str]:
    """The words, but for settings that other methods of the rehearsal have and this one lacks."""

    def has(name: str, key: str) -> bool:
        return name in options("method") and key.removeprefix("method.") in read_yaml(
            "method", name
        )

    def dropped(key: str) -> bool:
        elsewhere = any(has(name, key) for name in methods)
        return key.startswith("method.") and elsewhere and not has(method, key)

    return [word for word in words if not dropped(key_of(word))]


def _changes(given: Sequence[str]) -> dict[str, Any]:
    changes = {}
    for item in given:
        name, _, value = item.partition("=")
        try:
            changes[name] = json.loads(value)
        except ValueError as error:
            raise UserError(f"--config {item}: write FIELD=VALUE, the value as in JSON") from error
    return changes


def write_rows(rows: Sequence[Row], folder: Path, *, changed: bool) -> Path:
    """Replaces what the file has of the same stages; others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(rows[0].model, folder, changed=changed)
    fresh = list(csv.DictReader(as_csv(rows).splitlines()))
    known = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    lines = {tuple(row[name] for name in _IDENTITY): row for row in (*known, *fresh)}
    _write_lines(list(lines.values()), path)
    return path


def _write_lines(lines: Sequence[Mapping[str, str]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
