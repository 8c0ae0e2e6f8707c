"""Stage: what a step-wise corrector learned on the quantized model's own path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.stage import Stage
from experiments.sampling.correct import learn_corrector
from experiments.sampling.loaded import LoadedModel

if TYPE_CHECKING:
    from torch import nn

    from experiments.cell.denoiser import Denoiser
    from experiments.store.folders import Finished
    from segquant.core.correction import Corrector


@dataclass(frozen=True, kw_only=True)
class LearnedCorrector(Stage):
    """Every corrector learns from all calibration prompts."""

    kind = "corrector"
    denoiser: Denoiser  # the quantized one, not corrected
    fresh: Callable[[], Corrector]  # the method's corrector, which has learned nothing yet

    def fields(self) -> dict[str, Any]:
        return {
            "denoiser": self.denoiser.name,
            "sampler": self.around.sampler(),
            "prompts": self.around.prompts_hash.calibration,
        }

    def code(self) -> tuple[str, ...]:
        return self.denoiser.code()

    def learn(self, quantized: nn.Module) -> Finished:
        """The finished stage, learned with this denoiser if it is not there."""
        make = self._maker(quantized) if self.around.makes else self._refuse
        return self.around.store.build(self.kind, self.key(), make)

    def make(self, folder: Path) -> dict[str, Any]:
        module = self.denoiser.load().module
        assert module is not None
        return self._maker(module)(folder)

    def _maker(self, quantized: nn.Module) -> Callable[[Path], dict[str, Any]]:
        def make(folder: Path) -> dict[str, Any]:
            around = self.around
            model: LoadedModel = around.model
            with model.running(None, num_threads=around.num_threads) as pipeline:
                return learn_corrector(
                    pipeline,
                    quantized,
                    self.fresh(),
                    folder,
                    prompts=around.dataset.calibration,
                    config=around.config.model,
                    seed=around.config.seed,
                    progress=around.progress.part("corrector"),
                )

        return make
