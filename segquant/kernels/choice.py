"""Which way a product goes on a device, and why; what it says goes into the record.

Rules decide, and a committed table of measurements overrules them: `segbench bench-kernels` writes
it. A device without an entry has only the rules, and is said to be unmeasured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import torch

from segquant.kernels.codes import ActivationCode
from segquant.kernels.encode import Steps
from segquant.kernels.packed import PackedLinear

TABLE = Path(__file__).with_name("table.json")
SMALL_ROWS = 16  # up to here the weights are the traffic
# torch._int_mm on CUDA: cuBLASLt's alignment, and its least number of rows.
INT_MM_MULTIPLE = 8
INT_MM_MIN_ROWS = 17
FP8_CAPABILITY = (8, 9)
FP8_MULTIPLE = 16  # of features, for torch._scaled_mm
INT8_CAPABILITY = (8, 0)
WEAK_INT8 = ((10, 3),)  # B300: a thirtieth of its fp8 rate


class Way(Enum):
    """Member names are what a record says."""

    triton = "triton"
    triton_small = "triton_small"
    triton_w4 = "triton_w4"
    int_mm = "int_mm"  # a library's integer product, and our epilogue in plain torch
    scaled_mm = "scaled_mm"  # a library's fp8 product
    exact = "exact"  # integers on the CPU
    simulated = "simulated"  # floats: the numbers are right, and there is no speed to speak of

    @property
    def execution(self) -> str:
        """`kernel` or `simulated`, as records have it."""
        return "simulated" if self is Way.simulated else "kernel"


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a choice looks at: `cpu`, or a GPU of some compute capability."""

    kind: str
    capability: tuple[int, int] = (0, 0)
    triton: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Device:
        if device.type != "cuda":
            return cls(kind=device.type)
        return _cuda_device(device.index or 0)


@cache
def _cuda_device(index: int) -> Device:
    capability = torch.cuda.get_device_capability(index)
    return Device(kind="cuda", capability=capability, triton=has_triton())


@cache
def has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Choice:
    way: Way
    reason: str
    warning: str = ""  # where 16 bit is faster than what was asked for


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What of a layer decides its way."""

    integer: bool
    four_bit: bool
    small: bool  # the kernel for few rows knows it
    segments: tuple[int, ...]  # features of the input's parts
    runs: tuple[int, ...]  # output features of each run

    @property
    def features(self) -> tuple[int, int]:
        return sum(self.runs), sum(self.segments)

    @classmethod
    def of(cls, packed: PackedLinear) -> Facts:
        return cls(
            integer=packed.plan.integer,
            four_bit=packed.packed,
            small=small_fits(packed),
            segments=packed.plan.segments,
            runs=tuple(stop - start for _, start, stop in packed.runs),
        )


def choose(packed: PackedLinear, *, rows: int, device: Device) -> Choice:
    """How `rows` rows go through a layer on a device."""
    return decide(Facts.of(packed), rows=rows, device=device)


def decide(facts: Facts, *, rows: int, device: Device) -> Choice:
    """The same from facts alone. The operators call it when they run: it is never traced."""
    if not facts.integer:
        return _decide_fp8(facts, device)
    if device.kind == "cpu":
        return Choice(way=Way.exact, reason="integers, exact in int32, on the CPU")
    if device.kind != "cuda":
        return Choice(way=Way.simulated, reason=f"no integer product on {device.kind}")
    if device.capability < INT8_CAPABILITY:
        return Choice(way=Way.simulated, reason=f"no int8 product on {_sm(device)}")
    return _decide_integer(facts, rows=rows, device=device)


def _decide_fp8(facts: Facts, device: Device) -> Choice:
    if device.kind == "cuda" and device.capability >= FP8_CAPABILITY:
        if not any(size % FP8_MULTIPLE for size in (*facts.segments, *facts.runs)):
            return Choice(way=Way.scaled_mm, reason="torch._scaled_mm")
        reason = f"torch._scaled_mm wants multiples of {FP8_MULTIPLE} features"
        return Choice(way=Way.simulated, reason=reason)
    what = _sm(device) if device.kind == "cuda" else f"the {device.kind}"
    return Choice(way=Way.simulated, reason=f"no fp8 product on {what}")


def _decide_integer(facts: Facts, *, rows: int, device: Device) -> Choice:
    warning = ""
    if device.capability in WEAK_INT8:
        warning = f"{_sm(device)} has little int8: fp8 or 16 bit is faster"
    entry = measured(device, rows=rows, features=facts.features)
    if entry is not None and entry["ratio_to_bf16"] < 1:
        warning = f"16 bit is faster here, {1 / entry['ratio_to_bf16']:.2f} times (measured)"
    fits = int_mm_fits(facts, rows=rows)
    if not device.triton:
        if fits:
            return Choice(way=Way.int_mm, reason="Triton is not installed", warning=warning)
        return Choice(way=Way.simulated, reason="Triton is not installed, _int_mm does not fit")
    said = "by rule" if entry is None else "measured"
    if facts.four_bit:
        return Choice(way=Way.triton_w4, reason=f"4-bit weights, {said}", warning=warning)
    if facts.small and rows <= SMALL_ROWS:
        reason = f"{rows} rows: the weights are the traffic, {said}"
        return Choice(way=Way.triton_small, reason=reason, warning=warning)
    if entry is not None and entry["way"] == Way.int_mm.name and fits:
        return Choice(way=Way.int_mm, reason="measured", warning=warning)
    return Choice(way=Way.triton, reason=said, warning=warning)


def small_fits(packed: PackedLinear) -> bool:
    """Whether the kernel for few rows, which encodes the input itself, knows the layer."""
    plan = packed.plan
    simple = plan.codes in ((ActivationCode.symmetric,), (ActivationCode.dual,))
    plain = plan.groups == 1 and packed.up_NR is None and not packed.packed
    return simple and plain and plan.steps is Steps.static


def int_mm_fits(facts: Facts, *, rows: int) -> bool:
    """Whether torch._int_mm on CUDA takes these sizes (every part's)."""
    sizes = (*facts.segments, *facts.runs)
    return rows >= INT_MM_MIN_ROWS and not any(size % INT_MM_MULTIPLE for size in sizes)


def measured(device: Device, *, rows: int, features: tuple[int, int]) -> dict[str, Any] | None:
    """The table's entry of a shape: the same features, and the nearest rows within a factor two."""
    entries = _table().get(_sm(device), {}).get(f"{features[0]}x{features[1]}", [])
    near = [entry for entry in entries if entry["rows"] <= 2 * rows and rows <= 2 * entry["rows"]]
    best: dict[str, Any] | None = min(
        near, key=lambda entry: abs(entry["rows"] - rows), default=None
    )
    return best


@cache
def _table() -> dict[str, Any]:
    devices: dict[str, Any] = json.loads(TABLE.read_text())["devices"]
    return devices


def _sm(device: Device) -> str:
    return f"sm_{device.capability[0]}{device.capability[1]}"
