"""How time is taken: nothing in the caches, the median of many, twice, and what the device can do.

On a GPU every repeat begins by overwriting a buffer larger than the L2 cache, and events around the
call alone are read. On a CPU a monotonic clock is; that is for running the code, not for claims.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.speed.latency import deciles

FLUSH_BYTES = 256 * 2**20
TARGET_SECONDS = 0.03  # of measuring, each of the two times
MOST_REPEATS, LEAST_REPEATS = 200, 5


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: the median, and by how much a second series of repeats differed."""

    seconds: float
    spread: float  # |first - second| / median
    p10_seconds: float
    p90_seconds: float
    repeats: int


@dataclass(kw_only=True)
class Timer:
    """Measures on one device, until its time is up."""

    device: torch.device
    budget_seconds: float
    started: float = field(default_factory=time.perf_counter)
    _flush: Tensor | None = None

    @property
    def left(self) -> float:
        return self.budget_seconds - (time.perf_counter() - self.started)

    def measure(self, call: Callable[[], Any], *, warmups: int = 3) -> Timing:
        """Warms up (and compiles), then two series."""
        for _ in range(warmups):
            call()
        self.synchronize()
        begun = time.perf_counter()
        call()
        self.synchronize()
        once = max(time.perf_counter() - begun, 1e-6)
        repeats = max(LEAST_REPEATS, min(MOST_REPEATS, int(TARGET_SECONDS / once)))
        series = [self._series(call, repeats) for _ in range(2)]
        median = statistics.median([*series[0], *series[1]])
        first, second = (statistics.median(seconds) for seconds in series)
        low, high = deciles([*series[0], *series[1]])
        return Timing(
            seconds=median,
            spread=abs(first - second) / max(median, 1e-12),
            **{"p10_seconds": low, "p90_seconds": high},
            repeats=2 * repeats,
        )

    def _series(self, call: Callable[[], Any], repeats: int) -> list[float]:
        if self.device.type != "cuda":
            return [_clocked(call) for _ in range(repeats)]
        if self._flush is None:
            self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=self.device)
        pairs = []
        for _ in range(repeats):
            self._flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        self.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _clocked(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def poison(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> None:
    """Leaves NaN (or the largest code) in the memory that the next tensor of this size gets."""
    value = float("nan") if dtype.is_floating_point else 127
    for _ in range(2):
        torch.full(shape, value, dtype=dtype, device=device)


def ceilings(timer: Timer, *, small: bool) -> dict[str, float]:
    """What the device reaches: bytes copied a second, and operations of three large products."""
    device = timer.device
    size, copied = (256, 2**20) if small else (8192, 2**31)
    reached: dict[str, float] = {}
    source = torch.zeros(copied // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    taken = timer.measure(partial(target.copy_, source))
    reached["copy_bytes_per_second"] = 2 * copied / taken.seconds
    del source, target
    work = 2.0 * size**3
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    reached["bf16_per_second"] = work / timer.measure(lambda: a @ b.T).seconds
    x, w = ((20 * matrix.float()).clamp(-127, 127).to(torch.int8) for matrix in (a, b))
    reached["int8_per_second"] = work / timer.measure(lambda: torch._int_mm(x, w.T)).seconds
    zero = torch.zeros_like(x)
    # Zeros switch no transistors: far faster than random codes means that power is the limit.
    reached["int8_of_zeros_per_second"] = (
        work / timer.measure(lambda: torch._int_mm(zero, zero.T)).seconds
    )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        unit = torch.ones((), device=device)
        e, f = (t.to(torch.float8_e4m3fn) for t in (a, b))
        taken = timer.measure(
            lambda: torch._scaled_mm(e, f.T, scale_a=unit, scale_b=unit, out_dtype=torch.bfloat16)
        )
        reached["fp8_per_second"] = work / taken.seconds
    return reached
