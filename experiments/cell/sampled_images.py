"""Stage: images of the evaluation prompts under a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cell.encoded_texts import texts_of
from experiments.cell.shards import make_in_shards, remove_shards
from experiments.cell.stage import Stage
from experiments.sampling.loaded import LoadedModel
from experiments.sampling.sample import generate_images
from segquant.core.files import link_or_copy

if TYPE_CHECKING:
    from experiments.cell.denoiser import Denoiser
    from experiments.store.folders import Finished


@dataclass(frozen=True, kw_only=True)
class SampledImages(Stage):
    """One `<id>.png` a prompt. The reference is this stage under the unquantized denoiser."""

    kind = "images"
    denoiser: Denoiser
    batch_size: int  # prompts in one call of the pipeline
    num_threads: int

    def fields(self) -> dict[str, Any]:
        config = self.around.config
        return {
            "sampler": self.around.sampler(
                batch_size=self.batch_size, num_threads=self.num_threads
            ),
            "prompts": self.around.prompts_hash.evaluation,
            "latents": config.latents,
            "image": config.image,
            "encoder": version("pillow") if config.image == "jpeg" else None,
            "denoiser": self.denoiser.name,
        }

    def code(self) -> tuple[str, ...]:
        return self.denoiser.code()

    def make(self, folder: Path) -> dict[str, Any]:
        return make_in_shards(self, folder)

    def tidy(self) -> None:
        remove_shards(self)

    def batch_count(self) -> int:
        return -(-len(self.around.dataset.evaluation) // self.batch_size)

    def make_some(self, folder: Path, some: range | None) -> dict[str, Any]:
        config, prompts = self.around.config, self.around.dataset.evaluation
        if some is not None:
            prompts = prompts[some.start * self.batch_size : some.stop * self.batch_size]
        texts = texts_of(
            self.around,
            self.around.dataset.evaluation,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )
        denoiser = self.around.loaded(self.denoiser)
        model: LoadedModel = self.around.model
        with (
            model.running(denoiser.module, num_threads=self.num_threads, texts=texts) as pipeline,
            denoiser.sampling(pipeline),
        ):
            return generate_images(
                pipeline,
                prompts,
                folder,
                config=replace(config.model, batch_size=self.batch_size),
                seed=config.seed,
                progress=self.around.progress.part("images"),
                shared_noise=config.latents == "shared",
                jpeg=config.image == "jpeg",
            )

    def merge(self, folder: Path, shards: Sequence[Finished]) -> dict[str, Any]:
        taken = []  # seconds of each image, as far as they were measured
        for shard in shards:
            for name in shard.files:
                link_or_copy(shard.path / name, folder / name)
            each = shard.notes["seconds_per_image"]
            taken += [] if each is None else [each] * len(shard.files)
        return {
            "not_finite": [name for shard in shards for name in shard.notes["not_finite"]],
            "seconds_per_image": sum(taken) / len(taken) if taken else None,
        }

    def damaged(self, ids: Sequence[str]) -> Path | None:
        """The first of these pictures that is not what was written; its stage may be made again."""
        finished = self.find()
        if finished is None:
            return self.folder
        names = (f"{name}.png" for name in ids)
        return next((finished.path / name for name in names if finished.differs(name)), None)
