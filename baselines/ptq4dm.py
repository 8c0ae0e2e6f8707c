"""PTQ4DM: calibration steps drawn from a normal distribution, block reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baselines.adaround import AdaRound, step_of
from segquant.core import Element
from segquant.core.recorded_calls import Call


@dataclass(kw_only=True)
class Ptq4Dm(AdaRound):
    """Reconstruct blocks on samples whose steps are drawn from a normal distribution (NDTC).

    `t ~ N(mean T, (std T)^2)`, clipped to [0, T], with T the first step's timestep; the sample at
    the nearest step is what denoising from noise gave there. mean 0.4 and std 0.4 are the authors'
    script's; the paper says a mean of at most a half and a deviation of a half.
    Source: Shang et al. 2023, arXiv 2211.15736. The range of a scale by least squared error, as in
    the paper, is the bits' business: `range_rule: mse`.

    A step may be drawn several times; then several of its calls are taken, again from the first
    where they run out. Left out: 1024 samples (`calls` batches here).
    Cost: as `adaround`.
    """

    mean: float = 0.4  # of T
    std: float = 0.4  # of T

    def __post_init__(self) -> None:
        AdaRound.__post_init__(self)
        if not 0 <= self.mean <= 1 or self.std < 0:
            raise ValueError(
                f"mean={self.mean}, std={self.std}; give parts of T: mean in [0, 1], std from 0"
            )

    def draw(self, calls: Sequence[Call], *, generator: torch.Generator) -> list[Call]:
        """One call for each drawn timestep."""
        by_step: dict[float, list[Call]] = {}
        for call in calls:
            by_step.setdefault(step_of(call), []).append(call)
        steps = torch.tensor(list(by_step), dtype=torch.float64)
        top = float(steps.max())
        normal = torch.randn(self.calls, generator=generator, dtype=torch.float64)
        drawn = ((self.mean + self.std * normal) * top).clamp(0, top)
        taken = dict.fromkeys(by_step, 0)
        draws = []
        for timestep in drawn.tolist():
            step = float(steps[int((steps - timestep).abs().argmin())])
            draws.append(by_step[step][taken[step] % len(by_step[step])])
            taken[step] += 1
        return draws

    def elements(self) -> list[Element | str]:
        return ["steps drawn from a normal distribution (NDTC)", *AdaRound.elements(self)]
