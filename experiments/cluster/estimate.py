"""How long work will take, from what the store has already measured; None where it has nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.cell.surroundings import Surroundings
from experiments.store.manifest import MANIFEST, read_manifest
from slurm.arrays import Job

_LOOKED_AT = 40  # newest manifests: reading thousands would cost more than it tells
_DECISIVE = ("weights", "num_inference_steps", "size", "batch_size", "device", "dtype")


def seconds_per_prompt(around: Surroundings) -> float | None:
    """What an image of this model took on this kind of device: the largest of those measured."""
    wanted = around.sampler()
    measured = []
    paths = (around.store.root / "stages" / "images").glob(f"*/{MANIFEST}")
    for path in sorted(paths, key=_written, reverse=True)[:_LOOKED_AT]:
        manifest = read_manifest(path.parent)
        if manifest is None:
            continue
        sampler = manifest.key["sampler"]
        each = manifest.notes.get("seconds_per_image")
        if each is not None and all(sampler[name] == wanted[name] for name in _DECISIVE):
            measured.append(float(each))
    return max(measured, default=None)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def minutes(prompts: int, each: float | None) -> float | None:
    return None if each is None else prompts * each / 60


def hours(jobs: Sequence[Job]) -> float | None:
    """The sum over jobs; None as soon as one is unknown."""
    total = 0.0
    for job in jobs:
        if job.minutes is None:
            return None
        total += job.minutes
    return total / 60
