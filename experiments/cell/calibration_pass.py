"""Stage: what one pass of the unquantized model over the calibration prompts left behind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.encoded_texts import texts_of
from experiments.cell.shards import make_in_shards, remove_shards
from experiments.cell.stage import Stage
from experiments.sampling.calibrate import (
    CalibrationPass,
    calibration_batch_size,
    capture_bytes,
    load_calibration,
    merge_calibration,
    recorded_rows,
)
from experiments.sampling.loaded import LoadedModel
from segquant.core.calibration import Calibration
from segquant.core.recorded_calls import DEFAULT_CAPTURE_BYTES

if TYPE_CHECKING:
    from experiments.cell.surroundings import Surroundings
    from experiments.store.folders import Finished
    from segquant.core.method_interface import StatisticsNeeds


@dataclass(frozen=True, kw_only=True)
class CalibrationStatistics(Stage):
    """Statistics of every Linear's input; one pass serves every method of a sweep."""

    kind = "calibration"
    needs: StatisticsNeeds

    def fields(self) -> dict[str, Any]:
        return {
            "sampler": self.around.sampler(batch_size=self._batch_size()),
            "prompts": self.around.prompts_hash.calibration,
            "denoisers": self.around.config.model.denoisers,
            "keep": self.around.config.model.keep,
            "rows": recorded_rows(self.needs),
            "gram": self.needs.gram,
            "steps": self.needs.steps,
            "capture_bytes": capture_bytes(self.needs),
        }

    def _batch_size(self) -> int:
        prompts = len(self.around.dataset.calibration)
        return calibration_batch_size(self.around.config, prompts=prompts)

    def make(self, folder: Path) -> dict[str, Any]:
        return make_in_shards(self, folder)

    def tidy(self) -> None:
        remove_shards(self)

    def batch_count(self) -> int:
        return -(-len(self.around.dataset.calibration) // self._batch_size())

    def make_some(self, folder: Path, some: range | None) -> dict[str, Any]:
        around = self.around
        model: LoadedModel = around.model
        texts = texts_of(around, around.dataset.calibration, batch_size=self._batch_size())
        with model.running(None, num_threads=around.num_threads, texts=texts) as pipeline:
            return CalibrationPass(
                pipeline=pipeline,
                denoiser=model.denoiser,
                prompts=around.dataset.calibration,
                config=around.config,
                needs=self.needs,
                progress=around.progress.part("calibration"),
                note=around.progress.note,
            ).run(folder, some=some)

    def merge(self, folder: Path, shards: Sequence[Finished]) -> dict[str, Any]:
        notes = shards[0].notes
        paths = [shard.path for shard in shards]
        merge_calibration(paths, folder, needs=self.needs, layers=notes["layers"])
        forwards = sum(shard.notes["forwards"] for shard in shards)
        return {"forwards": forwards, "plan": notes["plan"]}

    def read(self) -> Calibration:
        """The statistics, made if they are not there."""
        return load_calibration(self.build().path)


def calibration_of(around: Surroundings) -> CalibrationStatistics:
    """What serves the sweep: what it needs, or a calibration with more if such a one is there."""
    needs = around.needs
    wanted = capture_bytes(needs)
    grams = dict.fromkeys((needs.gram, True))
    steps = dict.fromkeys((needs.steps, True))
    captures = [size for size in dict.fromkeys((wanted, DEFAULT_CAPTURE_BYTES)) if size >= wanted]
    for gram, step, capture in itertools.product(grams, steps, captures):
        more = replace(needs, gram=gram, steps=step, capture_bytes=capture)
        stage = CalibrationStatistics(around=around, needs=more)
        if stage.find() is not None:
            return stage
    return CalibrationStatistics(around=around, needs=needs)
