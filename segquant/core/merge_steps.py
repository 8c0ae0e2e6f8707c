"""Statistics per step of shards of a calibration set, put together as one pass would have them.

A shard keeps all rows of its sample with their draws: which of them stay is known when all shards
are there.

Legend: S steps, K sampled rows, I input features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from segquant.core.files import (
    TENSORS_FILE,
    Deferred,
    read_manifest,
    write_deferred,
    write_folder,
)
from segquant.core.stepwise import KIND, STEP_ROWS, LayerSteps, SeenStep, SeenSteps, stack_steps

_SHARD = "shard of statistics per step"


def save_seen(seen: SeenSteps, folder: str | os.PathLike[str]) -> None:
    """Writes a shard's part, for `merge_steps`."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name, steps in seen.items():
        every = list(steps.values())
        tensors[f"{name}.low"] = torch.stack([step.low_I for step in every])
        tensors[f"{name}.high"] = torch.stack([step.high_I for step in every])
        tensors[f"{name}.rows"] = torch.cat([step.rows_KI for step in every])
        tensors[f"{name}.priority"] = torch.cat([step.priority_K for step in every])
        counts = [len(step.priority_K) for step in every]
        layers[name] = {"timesteps": list(steps), "counts": counts}
    write_folder(folder, tensors=tensors, manifest={"kind": _SHARD, "layers": layers})


def merge_steps(
    shards: Sequence[Path], folder: Path, *, order: Sequence[str], rows: int = STEP_ROWS
) -> None:
    """Writes to `folder` what `load_steps` reads.

    Args:
        shards: folders that `save_seen` wrote, in the order of their batches.
        order: all Linears of the denoiser, in its order.
        rows: kept per layer and step, as each shard was told.

    Raises:
        ValueError: a folder holds no such thing.
    """
    layers = [read_manifest(shard, kind=_SHARD)["layers"] for shard in shards]
    files: list[Any] = [safe_open(shard / TENSORS_FILE, framework="pt") for shard in shards]
    tensors: dict[str, Deferred] = {}
    timesteps: dict[str, list[float]] = {}
    for name in order:
        pairs = zip(layers, files, strict=True)
        seen = [(known[name], file) for known, file in pairs if name in known]
        if not seen:
            continue
        counts: dict[float, int] = {}
        for entry, _ in seen:
            for timestep, count in zip(entry["timesteps"], entry["counts"], strict=True):
                counts[timestep] = min(rows, counts.get(timestep, 0) + count)
        _, features = seen[0][1].get_slice(f"{name}.low").get_shape()
        merged = _Layer(name, seen, rows=rows)
        wide = (len(counts), features)
        tensors[f"{name}.low_SI"] = _deferred(wide, partial(merged.get, "low_SI"))
        tensors[f"{name}.high_SI"] = _deferred(wide, partial(merged.get, "high_SI"))
        sample = (len(counts), min(counts.values()), features)
        tensors[f"{name}.sample_SKI"] = _deferred(sample, partial(merged.get, "sample_SKI"))
        timesteps[name] = list(counts)
    write_deferred(folder, tensors=tensors, manifest={"kind": KIND, "timesteps": timesteps})


def _deferred(shape: tuple[int, ...], make: Callable[[], Tensor]) -> Deferred:
    return Deferred(shape=shape, dtype=torch.float32, make=make)


class _Layer:
    """One layer, merged when its first tensor is asked for and let go of with its last."""

    def __init__(self, name: str, seen: Sequence[tuple[Any, Any]], *, rows: int) -> None:
        self._name, self._seen, self._keep = name, seen, rows
        self._left: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor:
        if not self._left:
            steps = self._merge()
            keys = ("low_SI", "high_SI", "sample_SKI")
            self._left = {k: getattr(steps, k) for k in keys}
        return self._left.pop(key)

    def _merge(self) -> LayerSteps:
        merged: dict[float, SeenStep] = {}
        for entry, file in self._seen:
            for timestep, own in _steps(self._name, entry, file):
                known = merged.get(timestep)
                merged[timestep] = own if known is None else _both(known, own, keep=self._keep)
        return stack_steps(merged)


def _steps(name: str, entry: dict[str, Any], file: Any) -> Iterator[tuple[float, SeenStep]]:
    keys = ("low", "high", "rows", "priority")
    low_SI, high_SI, rows_KI, priority_K = (file.get_tensor(f"{name}.{key}") for key in keys)
    each = (
        *(low_SI, high_SI),
        *(rows_KI.split(entry["counts"]), priority_K.split(entry["counts"])),
    )
    for timestep, low_I, high_I, rows, priority in zip(entry["timesteps"], *each, strict=True):
        yield (
            timestep,
            SeenStep(low_I=low_I, high_I=high_I, rows_KI=rows, priority_K=priority),
        )


def _both(one: SeenStep, other: SeenStep, *, keep: int) -> SeenStep:
    priority_K = torch.cat([one.priority_K, other.priority_K])
    order = priority_K.argsort(stable=True)[:keep]
    return SeenStep(
        low_I=torch.minimum(one.low_I, other.low_I),
        high_I=torch.maximum(one.high_I, other.high_I),
        rows_KI=torch.cat([one.rows_KI, other.rows_KI])[order],
        priority_K=priority_K[order],
    )
