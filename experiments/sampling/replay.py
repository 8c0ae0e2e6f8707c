"""The calibration's inputs on disk, and a denoiser run on them again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.sampling.generate import device_of, recorded_calls
from segquant.core.calibration import Replay


def replay_of(folder: Path, notes: dict[str, Any]) -> Replay:
    """Runs a denoiser on what `record_trajectory` kept of the unquantized one (teacher forcing)."""

    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        device = device_of(denoiser)
        every = (
            arguments
            for _, recorded in recorded_calls(folder, notes, device=device)
            for arguments, _ in recorded
        )
        with torch.no_grad():
            for arguments in islice(every, calls):
                denoiser(**arguments)

    return replay


def count_calls(notes: dict[str, Any]) -> int:
    return sum(len(described["calls"]) for described in notes["batches"])
