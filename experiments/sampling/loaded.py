"""A pipeline in memory, and another denoiser put into it for a while.

Of a large denoiser one is in memory at a time, the unquantized or a quantized one: it is handed
over to be quantized in place, and its weights are read from disk again when they are next asked
for. A small one is copied instead, which is faster than to read it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experiments.sampling.assembled import load_part
from experiments.sampling.model_shapes import keep_layers
from experiments.sampling.offload import offloaded, placed
from experiments.sampling.pipelines import Places, get_denoiser, load_pipeline, places_of, put
from experiments.sampling.text_states import TextStates
from experiments.sampling.threads import threads
from segquant.core.other_weights import WeightCount, count_weights
from segquant.core.several import together

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

COPIED_BYTES = 2**28  # of weights: a denoiser up to this size is copied


def _nothing() -> None:
    """Nobody holds a denoiser besides."""


@dataclass(kw_only=True)
class LoadedModel:
    """A diffusers pipeline; it is loaded when it is first asked for."""

    config: ModelConfig
    device: torch.device
    make_room: Callable[[], None] = _nothing  # called before weights are read again
    _own: nn.Module | None = field(default=None, repr=False)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline; its denoiser may be lent to somebody: `running` puts one in."""
        instead = self.texts.stand_ins() if self.config.embeddings else {}
        pipeline = load_pipeline(self.config, device=self._home, instead=instead)
        self._own = get_denoiser(pipeline, self.config.denoisers)
        return pipeline

    @cached_property
    def texts(self) -> TextStates:
        """What answers for text encoders that are not here, with `model.embeddings`."""
        return TextStates(config=self.config, device=self.device)

    @cached_property
    def _places(self) -> Places:
        return places_of(self.pipeline, self.config.denoisers)

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's own, unquantized; of several, a `Denoisers` with its own modules.

        On the device, unless the model is offloaded.
        """
        places = self._places
        if self._own is None:
            self.make_room()
            gc.collect()  # diffusers' hooks refer to the module that has them: a circle
            read = together({name: load_part(self.config, name) for name in places})
            keep_layers(read, self.config)
            self._own = read.to(self._home)
            put(self._own, places=places)
        return self._own

    @property
    def offloads(self) -> bool:
        """Whether a part that is not running waits on the host."""
        return self.config.offload != "none"

    @property
    def _home(self) -> torch.device:
        """Where a denoiser lies that is not running."""
        return torch.device("cpu") if self.offloads else self.device

    @contextmanager
    def placed(self, denoiser: nn.Module) -> Iterator[nn.Module]:
        """A denoiser where it can be called with arguments that are on the device."""
        with placed(denoiser, device=self.device, how=self.config.offload):
            yield denoiser

    @cached_property
    def weights(self) -> WeightCount:
        """Of the unquantized denoiser."""
        return count_weights(self.denoiser)

    def take(self) -> nn.Module:
        """An unquantized denoiser for the caller to change: a copy of a small one, else the own."""
        own, _ = self.denoiser, self.weights
        if self._is_small(own):
            return copy.deepcopy(own)
        self._let_go()
        return own

    def _let_go(self) -> None:
        self._own = None
        put(None, places=self._places)
        gc.collect()

    @staticmethod
    def _is_small(denoiser: nn.Module) -> bool:
        return sum(tensor.nbytes for tensor in denoiser.state_dict().values()) <= COPIED_BYTES

    @contextmanager
    def running(
        self, denoiser: nn.Module | None, *, num_threads: int, texts: Path | None = None
    ) -> Iterator[Any]:
        """The pipeline with that denoiser in it (None: its own), on so many CPU threads.

        Args:
            texts: what its text encoders say; None where they are here.
        """
        self.texts.folder = texts
        pipeline, places = self.pipeline, self._places
        if denoiser is None:
            denoiser = self.denoiser
        elif self._own is not None and not self._is_small(self._own):
            self._let_go()
        put(denoiser, places=places)
        try:
            with (
                threads(num_threads),
                offloaded(pipeline, device=self.device, how=self.config.offload),
            ):
                yield pipeline
        finally:
            self.texts.forget()
            put(self._own, places=places)
