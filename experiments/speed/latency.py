"""Latency by the protocol: warm-ups that do not count, many repeats, median and deciles.

On a GPU events around each call are read, after all calls were launched; on a CPU a monotonic
clock. What a call does with caches is its own: a whole denoiser fills them by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

STEP_WARMUPS, STEP_REPEATS = 10, 50
IMAGE_WARMUPS = 2
LEAST_REPEATS = 3  # where the time is up before


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds of one call."""

    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    repeats: int
    warmups: int


def measure_latency(
    call: Callable[[], Any],
    *,
    device: torch.device,
    warmups: int,
    repeats: int,
    budget_seconds: float = float("inf"),
) -> Latency:
    """Calls until the repeats are done or the time is up, but `LEAST_REPEATS` times at least."""
    for _ in range(warmups):
        call()
    synchronize(device)
    clock = _on_gpu if device.type == "cuda" else _on_cpu
    taken = clock(call, repeats, time.perf_counter() + budget_seconds)
    low, high = deciles(taken)
    return Latency(
        median_seconds=statistics.median(taken),
        p10_seconds=low,
        p90_seconds=high,
        repeats=len(taken),
        warmups=warmups,
    )


def deciles(values: list[float]) -> tuple[float, float]:
    """The tenth and the ninetieth percentile, between the sorted values."""
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[0], cuts[-1]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _goes_on(done: int, repeats: int, end: float) -> bool:
    return done < repeats and (done < LEAST_REPEATS or time.perf_counter() < end)


def _on_cpu(call: Callable[[], Any], repeats: int, end: float) -> list[float]:
    taken: list[float] = []
    while _goes_on(len(taken), repeats, end):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken


def _on_gpu(call: Callable[[], Any], repeats: int, end: float) -> list[float]:
    pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    while _goes_on(len(pairs), repeats, end):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        pairs.append((before, after))
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairs]
