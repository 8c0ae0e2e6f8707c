"""Energy of a loop of calls, from the counter of the GPU's driver (NVML)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from experiments.speed.arguments import ENERGY_SECONDS
from experiments.speed.latency import synchronize

_MILLI = 1e-3  # the counter is in millijoules


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Joules of one image, or why they are not known."""

    joules_per_image: float | None
    note: str


Counter = Callable[[], float]  # joules since the driver was loaded


def energy_counter(device: torch.device) -> Counter | str:
    """The device's counter, or why there is none."""
    if device.type != "cuda":
        return "no NVML on a CPU"
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "pynvml is not installed (pip install nvidia-ml-py)"
    try:
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # NVML's own classes: an old GPU, a driver that does not tell
        return f"NVML does not tell: {error}"
    return lambda: _MILLI * float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def measure_energy(
    call: Callable[[], Any],
    *,
    images: int,
    device: torch.device,
    counter: Counter | str,
    seconds: float = ENERGY_SECONDS,
) -> Energy:
    """Of a loop of calls that each make so many images; of the whole card, idle power included."""
    if isinstance(counter, str):
        return Energy(joules_per_image=None, note=counter)
    synchronize(device)
    begun, joules, calls = time.perf_counter(), counter(), 0
    while calls == 0 or time.perf_counter() - begun < seconds:
        call()
        synchronize(device)
        calls += 1
    used, taken = counter() - joules, time.perf_counter() - begun
    note = f"{calls * images} images in {taken:.0f} s"
    return Energy(joules_per_image=used / (calls * images), note=note)
