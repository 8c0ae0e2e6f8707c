"""Stage: what a model's text encoders say of some prompts: no other stage needs them then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.datasets.loading import prompts_hash
from experiments.cell.stage import Stage
from experiments.sampling.encode_texts import encode_texts
from experiments.sampling.threads import threads

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.cell.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class EncodedTexts(Stage):
    """The encoders' calls for every batch of prompts; see `experiments.sampling.text_states`."""

    kind = "texts"
    prompts: tuple[Prompt, ...]
    prompts_hash: str
    batch_size: int
    num_threads: int

    def fields(self) -> dict[str, Any]:
        sampler = self.around.sampler(batch_size=self.batch_size, num_threads=self.num_threads)
        return {"sampler": sampler, "prompts": self.prompts_hash}

    def make(self, folder: Path) -> dict[str, Any]:
        config = self.around.config
        with threads(self.num_threads):
            calls = encode_texts(
                replace(config.model, batch_size=self.batch_size),
                self.prompts,
                folder,
                device=self.around.device,
                seed=config.seed,
            )
        return {"calls": calls}


def texts_of(
    around: Surroundings,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    num_threads: int | None = None,
) -> Path | None:
    """Where what the text encoders say of the prompts lies; None where they stay in memory."""
    if not around.config.model.embeddings:
        return None
    stage = encoded_texts(around, prompts, batch_size=batch_size, num_threads=num_threads)
    return stage.build().path


def encoded_texts(
    around: Surroundings,
    prompts: Sequence[Prompt],
    *,
    batch_size: int | None = None,
    num_threads: int | None = None,
) -> EncodedTexts:
    """The stage of these prompts, in the model's own batches unless others are given."""
    return EncodedTexts(
        around=around,
        prompts=tuple(prompts),
        prompts_hash=prompts_hash(prompts),
        batch_size=batch_size or around.config.model.batch_size,
        num_threads=num_threads or around.num_threads,
    )
