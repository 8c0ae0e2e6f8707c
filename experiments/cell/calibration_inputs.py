"""Stage: the unquantized denoiser's inputs over the calibration prompts, to be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.encoded_texts import texts_of
from experiments.cell.shards import make_in_shards, remove_shards
from experiments.cell.stage import Stage
from experiments.sampling.loaded import LoadedModel
from experiments.sampling.trajectory import (
    count_calls,
    merge_trajectories,
    record_trajectory,
    replay_of,
)

if TYPE_CHECKING:
    from experiments.store.folders import Finished
    from segquant.core.calibration import Replay


@dataclass(frozen=True, kw_only=True)
class CalibrationInputs(Stage):
    """A pass of its own over the calibration prompts; what it keeps is bounded on disk."""

    kind = "calibration_inputs"

    def fields(self) -> dict[str, Any]:
        return {
            "sampler": self.around.sampler(),
            "denoisers": self.around.config.model.denoisers,
            "prompts": self.around.prompts_hash.calibration,
        }

    def make(self, folder: Path) -> dict[str, Any]:
        return make_in_shards(self, folder)

    def tidy(self) -> None:
        remove_shards(self)

    def batch_count(self) -> int:
        return -(-len(self.around.dataset.calibration) // self.around.config.model.batch_size)

    def _limit_bytes(self) -> int:
        return int(self.around.config.replay_gigabytes * 1e9)

    def make_some(self, folder: Path, some: range | None) -> dict[str, Any]:
        around, config = self.around, self.around.config
        model: LoadedModel = around.model
        prompts, size = around.dataset.calibration, config.model.batch_size
        texts = texts_of(around, prompts, batch_size=size)
        with model.running(None, num_threads=around.num_threads, texts=texts) as pipeline:
            notes = record_trajectory(
                pipeline,
                prompts,
                folder,
                config=config.model,
                seed=config.seed,
                limit_bytes=self._limit_bytes(),
                some=some,
            )
        return {**notes, "forwards": count_calls(notes)}

    def merge(self, folder: Path, shards: Sequence[Finished]) -> dict[str, Any]:
        parts = [(shard.path, shard.notes) for shard in shards]
        notes = merge_trajectories(parts, folder, limit_bytes=self._limit_bytes())
        return {**notes, "forwards": count_calls(notes)}

    def replay(self) -> Replay:
        """Runs a denoiser on these inputs."""
        finished = self.build()
        return replay_of(finished.path, finished.notes)
