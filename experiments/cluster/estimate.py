"""How long work will take, from what the store has already measured; None where it has nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.cell.bench import Bench
from experiments.store.folders import MANIFEST

_LOOKED_AT = 40  # newest manifests: reading thousands would cost more than it tells
_DECISIVE = ("weights", "num_inference_steps", "size", "batch_size", "device", "dtype")


def seconds_per_prompt(bench: Bench) -> float | None:
    """What an image of this model took on this kind of device: the largest of those measured."""
    wanted = bench.sampler()
    found = []
    paths = (bench.store.root / "stages" / "images").glob(f"*/{MANIFEST}")
    for path in sorted(paths, key=_written, reverse=True)[:_LOOKED_AT]:
        content = json.loads(path.read_text())
        sampler = content["key"]["sampler"]
        each = content["notes"].get("seconds_per_image")
        if each is not None and all(sampler[name] == wanted[name] for name in _DECISIVE):
            found.append(float(each))
    return max(found, default=None)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def minutes(prompts: int, each: float | None) -> float | None:
    return None if each is None else prompts * each / 60


def hours(jobs: list[Any]) -> float | None:
    """The sum over jobs; None as soon as one is unknown."""
    known = [job.minutes for job in jobs]
    return None if any(value is None for value in known) else sum(known) / 60
