"""What both verbs are asked to measure, and how every result of theirs begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.resources import describe_environment, utc_now
from experiments.speed.full_sizes import SpeedModel
from experiments.speed.timing import clocks
from experiments.store.paths import ROOT

_PACKAGES = ("torch", "triton", "diffusers", "torchao")


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
            "environment": describe_environment(repository=ROOT, packages=_PACKAGES),
            "device_kind": self.device.type,
            "clocks_before": clocks(),
        }


def failed(raised: Exception) -> dict[str, str]:
    """A row's status and why, in one line."""
    reason = f"{type(raised).__name__}: {raised}"
    return {"status": "failed", "reason": " ".join(reason.split())[:300]}
