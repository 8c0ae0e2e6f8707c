"""Stage: a denoiser's error at every step of the reference's own trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.cell.stage import Stage
from experiments.sampling.threads import threads
from experiments.sampling.trajectory import replay_errors

if TYPE_CHECKING:
    from experiments.cell.denoiser import Denoiser
    from experiments.cell.reference_trajectory import ReferenceTrajectory
    from experiments.store.folders import Finished

_ERRORS = "errors.pt"


@dataclass(frozen=True, kw_only=True)
class StepErrors(Stage):
    """Per prompt and step; the unquantized denoiser too is run again, not assumed exact."""

    kind = "step_errors"
    trajectory: ReferenceTrajectory
    denoiser: Denoiser
    num_threads: int

    def fields(self) -> dict[str, Any]:
        return {
            "trajectory": self.trajectory.hash,
            "denoiser": self.denoiser.name,
            "num_threads": self.num_threads,
        }

    def code(self) -> tuple[str, ...]:
        return self.denoiser.code()

    def make(self, folder: Path) -> None:
        trajectory = self.trajectory.build()
        module, model = self.around.loaded(self.denoiser).module, self.around.model
        chosen = model.denoiser if module is None else module
        with threads(self.num_threads), model.placed(chosen) as denoiser:
            errors_NT = replay_errors(
                denoiser, trajectory.path, trajectory.notes, device=model.device
            )
        torch.save(errors_NT, folder / _ERRORS)

    def by_prompt(self, finished: Finished) -> dict[str, list[float]]:
        """Prompt id -> the error of each step."""
        errors_NT = torch.load(finished.path / _ERRORS, weights_only=True)
        ids = (prompt.id for prompt in self.trajectory.prompts)
        return dict(zip(ids, errors_NT.double().tolist(), strict=True))
