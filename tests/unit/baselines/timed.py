"""A denoiser with a timestep, its calibration per step and its stored calls."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder
from tests.unit.core.helpers import correlated

TIMESTEPS = (900.0, 600.0, 300.0, 50.0)


class TimedBlock(nn.Module):
    """Two Linears and a GELU; the class name says that it is a block."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.up = nn.Linear(features, 2 * features)
        self.down = nn.Linear(2 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


class Timed(nn.Module):
    """A Linear alone, and a block; the timestep scales the input."""

    def __init__(self, features: int = 16, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(features, features)
        self.block = TimedBlock(features)

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.block(self.first(x * (0.2 + timestep / 1000))),)


def calls(features: int = 16, *, per_step: int = 2) -> list[tuple[Tensor, Tensor]]:
    found = []
    for number in range(per_step):
        for n, timestep in enumerate(TIMESTEPS):
            x = correlated(24, features, seed=10 * number + n, spread=1.0)
            found.append((x, torch.tensor(timestep)))
    return found


def calibrated(
    folder: Path, *, features: int = 16, cap_bytes: int = 2**20
) -> tuple[Timed, Calibration]:
    model = Timed(features)
    recorder = StatisticsRecorder(model, gram=True)
    steps, stored = StepRecorder(model), CallRecorder(model, folder, cap_bytes=cap_bytes)
    with torch.no_grad(), recorder, steps, stored:
        for x, timestep in calls(features):
            model(x, timestep)
    calibration = Calibration(statistics=recorder.statistics(), forwards=recorder.forwards)
    calibration.steps = steps.statistics()
    calibration.captured = CapturedCalls.load(folder)
    return model, calibration
