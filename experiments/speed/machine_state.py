"""How the machine stands at the begin and the end of a measurement, and whether it was calm."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import torch

from evaluation.gpu_state import SLOWED, gpu_state
from evaluation.resources import utc_now

_IDLE_LOAD = 0.3  # of other processes, at which a machine counts as calm
_HARMLESS = ("idle", "applications clocks setting", "display clocks setting")
_MEGA = 1e6


def machine_state(device: torch.device) -> dict[str, Any]:
    """Load, clocks, and on a GPU what slows it down."""
    uuid = None
    if device.type == "cuda":
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return {
        "utc": utc_now(),
        "load": os.getloadavg()[0],
        "cpu_hertz": _cpu_hertz(),
        "gpu": gpu_state(uuid) if uuid else {},
    }


def why_not_calm(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What of the machine speaks against its figures; empty for a calm one.

    The load afterwards holds the measurement's own, so that only the load before it counts.
    """
    reasons = []
    if before["load"] > _IDLE_LOAD:
        reasons.append(f"the load was {before['load']:.2f} before it began")
    for when, state in (("before", before), ("after", after)):
        slowed = [name for name in state["gpu"].get(SLOWED) or () if name not in _HARMLESS]
        if slowed:
            reasons.append(f"the GPU was slowed by {', '.join(slowed)} {when}")
    return reasons


def _cpu_hertz() -> float | None:
    """The mean clock of the processors now; None where the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith("cpu MHz")]
    return _MEGA * statistics.mean(map(float, lines)) if lines else None


def state_text(state: dict[str, Any]) -> str:
    """One line for a report."""
    parts = [f"load {state['load']:.2f}"]
    if state["cpu_hertz"]:
        parts.append(f"processor {state['cpu_hertz'] / 1e9:.2f} GHz")
    gpu = dict(state["gpu"])
    slowed = gpu.pop(SLOWED, None)
    parts += [f"{name} {value}" for name, value in gpu.items()]
    if gpu:
        parts.append(f"slowed by {', '.join(slowed) or 'nothing'}" if slowed is not None else "")
    return ", ".join(filter(None, parts))
