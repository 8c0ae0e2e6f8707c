"""A pipeline in memory, and another denoiser put into it for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.sampling.pipelines import get_denoiser, load_pipeline, set_denoiser
from experiments.sampling.threads import threads

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig


@dataclass(kw_only=True)
class LoadedModel:
    """A diffusers pipeline; it is loaded when it is first asked for."""

    config: ModelConfig
    device: torch.device

    @cached_property
    def pipeline(self) -> Any:
        return load_pipeline(self.config, device=self.device)

    @cached_property
    def denoiser(self) -> nn.Module:
        """The pipeline's own, unquantized; of several, a `Denoisers` with its own modules."""
        return get_denoiser(self.pipeline, self.config.denoisers)

    @contextmanager
    def running(self, denoiser: nn.Module | None, *, num_threads: int) -> Iterator[Any]:
        """The pipeline with that denoiser in it (None: its own), on so many CPU threads."""
        own, names = self.denoiser, self.config.denoisers
        set_denoiser(self.pipeline, own if denoiser is None else denoiser, names)
        try:
            with threads(num_threads):
                yield self.pipeline
        finally:
            set_denoiser(self.pipeline, own, names)
