"""What a GPU's driver says of it now: clocks, power, temperature, and why it runs slower."""

from __future__ import annotations

import subprocess
from typing import Any

DRIVER = "driver_version"
KEYS = (DRIVER, "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "temperature.gpu")
SLOWED = "slowed_by"
# the second is the older drivers' name of the first
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_SECONDS = 10
# Source: nvml.h, nvmlClocksEventReasons
_BITS = {
    0x1: "idle",
    0x2: "applications clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks setting",
}


def gpu_state(uuid: str | None = None) -> dict[str, Any]:
    """By nvidia-smi's names, and `slowed_by`, a list of reasons; empty where there is no GPU.

    Args:
        uuid: of which GPU; None for the first.
    """
    values = _query(KEYS, uuid)
    if values is None:
        return {}
    state: dict[str, Any] = dict(zip(KEYS, values, strict=False))
    for name in _REASONS:
        said = _query((name,), uuid)
        if said:
            return state | {SLOWED: slow_reasons(said[0])}
    return state | {SLOWED: None}


def slow_reasons(text: str) -> list[str] | None:
    """Names of the bits of a number such as 0x0000000000000004; None for what is no number."""
    try:
        mask = int(text, 16)
    except ValueError:
        return None
    known = [name for bit, name in _BITS.items() if mask & bit]
    rest = mask & ~sum(_BITS)
    return [*known, *([hex(rest)] if rest else [])]


def _query(keys: tuple[str, ...], uuid: str | None) -> list[str] | None:
    query = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"]
    query += [] if uuid is None else [f"--id={uuid}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].split(", ") if lines else None
