"""Stage: what the unquantized denoiser was given and said, for some evaluation prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.encoded_texts import texts_of
from experiments.cell.stage import Stage
from experiments.sampling.loaded import LoadedModel
from experiments.sampling.trajectory import record_trajectory

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt


@dataclass(frozen=True, kw_only=True)
class ReferenceTrajectory(Stage):
    """The denoiser's calls, on disk, batch by batch."""

    kind = "trajectory"
    prompts: tuple[Prompt, ...]

    def fields(self) -> dict[str, Any]:
        return {
            "sampler": self.around.sampler(),
            "denoisers": self.around.config.model.denoisers,
            "prompts": self.around.prompts_hash.traced,
            "latents": self.around.config.latents,
        }

    def make(self, folder: Path) -> dict[str, Any]:
        around, config = self.around, self.around.config
        model: LoadedModel = around.model
        texts = texts_of(around, self.prompts, batch_size=config.model.batch_size)
        with model.running(None, num_threads=around.num_threads, texts=texts) as pipeline:
            return record_trajectory(
                pipeline,
                self.prompts,
                folder,
                config=config.model,
                seed=config.seed,
                shared_noise=config.latents == "shared",
            )
