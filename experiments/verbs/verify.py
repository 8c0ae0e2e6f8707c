"""`segbench verify`: reads a whole store, and the weights it knows, against checksums.

Changes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluation.feature_cache import is_whole
from evaluation.records import read_record
from experiments.cell.cell import RECORD
from experiments.store.digests import file_digest
from experiments.store.file_hashes import HASHES, FileHashes
from experiments.store.folders import Store
from experiments.store.manifest import differing_files, read_manifest
from experiments.verbs.answer import Answer
from experiments.verbs.words import store_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the words."""


def run(options: argparse.Namespace) -> Answer:
    root = store_root(options)
    stages, records = Store(root).finished(), sorted((root / "cells").glob(f"*/{RECORD}"))
    damaged = [line for folder in stages for line in _stage(folder)]
    damaged += [line for path in records for line in _record(path)]
    damaged += [
        f"{path}: not what was written"
        for path in sorted((root / "stages" / "features").glob("*.npy"))
        if not is_whole(path)
    ]
    hint = ["segbench run makes what is damaged again"] if damaged else []
    cache = root / HASHES
    outside = [
        f"{path}: changed, and its size and times are the same; remove {cache} to have it read "
        "again by every run"
        for path in FileHashes(cache).changed()
    ]
    count = len(damaged) + len(outside)
    counts = f"{len(stages)} stages and {len(records)} records read, {count} files damaged"
    text = "\n".join([*damaged, *outside, counts, *hint])
    data = {"stages": len(stages), "records": len(records), "damaged": [*damaged, *outside]}
    return Answer(text, data, failed=count > 0)


def _stage(folder: Path) -> list[str]:
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{folder}: its manifest is not what was written"]
    return [f"{folder / name}: not what was written" for name in differing_files(folder, manifest)]


def _record(path: Path) -> list[str]:
    try:
        record = read_record(path)
    except (ValueError, OSError) as error:
        return [str(error)]
    lines = []
    if record.run_id != path.parent.name:
        lines.append(f"{path}: the record of {record.run_id}")
    for name, sha256 in record.files.items():
        beside = path.with_name(name)
        if not beside.is_file() or file_digest(beside) != sha256:
            lines.append(f"{beside}: not what was written")
    return lines
