"""A quantized denoiser whose output is corrected step by step by what was learned on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.cell.denoiser import Denoiser, LoadedDenoiser
from experiments.sampling.correct import corrected_noise, load_corrector, note_variance

if TYPE_CHECKING:
    from experiments.cell.learned_corrector import LearnedCorrector


@dataclass(frozen=True, kw_only=True)
class CorrectedDenoiser:
    """Another denoiser with hooks on it, and on a stochastic sampler's noise."""

    base: Denoiser
    corrector: LearnedCorrector

    @property
    def name(self) -> str:
        return f"{self.base.name}-corrected-{self.corrector.hash}"

    def code(self) -> tuple[str, ...]:
        return (__name__, *self.base.code())

    def load(self) -> LoadedDenoiser:
        loaded = self.base.load()
        assert loaded.module is not None
        assert loaded.report is not None
        folder = self.corrector.learn(loaded.module).path
        attached = load_corrector(loaded.module, self.corrector.fresh(), folder)
        scheduler = self.corrector.around.model.pipeline.scheduler
        report, kernels = loaded.report, loaded.kernels
        for left_out in (report.left_out, kernels.left_out):
            done: list[str] = []
            note_variance(attached.corrector, scheduler, elements=done, left_out=left_out)
        report.elements += done
        loaded.sampling = lambda pipeline: corrected_noise(pipeline, attached)
        return loaded
