"""What both verbs are asked to measure, and how every result of theirs begins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from evaluation.resources import describe_environment, utc_now
from experiments.speed.full_sizes import SpeedModel
from experiments.speed.machine_state import machine_state
from experiments.store.paths import ROOT

ORDER_SEED = 0
PACKAGES = ("torch", "triton", "diffusers", "torchao")


T = TypeVar("T")


def in_random_order(items: Sequence[T], *, seed: int = ORDER_SEED) -> list[T]:
    """The same at every call: what is measured later finds a warmer machine, whoever it is."""
    return random.Random(seed).sample(items, len(items))


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of a verb."""

    models: Sequence[SpeedModel]
    device: torch.device
    small: bool  # the tiny models' shapes
    compiled: bool  # torch.compile's rows as well
    budget_seconds: float

    def begin(self, command: str) -> dict[str, Any]:
        return {
            "command": command,
            "small": self.small,
            "started_utc": utc_now(),
            "environment": describe_environment(repository=ROOT, packages=PACKAGES),
            "device_kind": self.device.type,
            "machine_before": machine_state(self.device),
        }


def failed(raised: Exception) -> dict[str, str]:
    """A row's status and why, in one line."""
    reason = f"{type(raised).__name__}: {raised}"
    return {"status": "failed", "reason": " ".join(reason.split())[:300]}
