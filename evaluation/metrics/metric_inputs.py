"""What metrics read: folders of images, prompts, weights; each read or computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from evaluation import distances
from evaluation.clip_evaluator import Evaluator, load_evaluator
from evaluation.datasets.picture_files import PictureFile
from evaluation.feature_cache import cached_array, file_hash, folder_contents
from evaluation.images import image_size, read_batch, to_float
from evaluation.records import MetricUnavailable
from evaluation.statistics import RESAMPLES

INCEPTION = "inception"  # the prefix of its features
_BATCH = 64

Value = TypeVar("Value")


@dataclass(kw_only=True)
class MetricSettings:
    """What all metrics share.

    Args:
        prefix: names the evaluator's features in `fid_{prefix}_reference` and so on.
        inception: a folder; where given, the same distances again with Inception features.
        resamples: of the bootstrap over prompts.
        cache: features and scores of the reference and the dataset are kept here, under a name
            made of the images' and the evaluator's contents.
        file_key: gives the sha256 of a file of weights.
    """

    evaluator: Path
    prefix: str
    lpips: bool = True
    inception: Path | None = None
    inception_sha256: str | None = None
    seed: int = 0
    resamples: int = RESAMPLES
    cache: Path | None = None
    file_key: Callable[[Path], str] = file_hash

    def __post_init__(self) -> None:
        distances.check_prefix(self.prefix)


@dataclass(kw_only=True)
class Inputs:
    """One method's images with all that they are held against.

    Args:
        images, reference: exactly one `{prompt_id}.png` for each id of `prompts`.
        dataset: id -> true image, read where it lies, of these or other prompts; None where there
            are none.
        prompts: id -> text; None of what is made without one.
        step_errors: prompt id -> relative error of each step, for the prompts that were traced, in
            the order in which they count (a bootstrap draws by it); None where none was.
        loaded: the evaluator, where it is loaded already.
    """

    images: Path
    reference: Path
    prompts: Mapping[str, str | None]
    settings: MetricSettings
    dataset: Mapping[str, PictureFile] | None = None
    step_errors: Mapping[str, Sequence[float]] | None = None
    loaded: Evaluator | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # column -> id -> value
    _kept: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False)

    def text(self, prompt_id: str) -> str:
        """A prompt's text.

        Raises:
            MetricUnavailable: there is none.
        """
        text = self.prompts[prompt_id]
        if text is None:
            raise MetricUnavailable("the model takes no prompts, so no image has a text to fit")
        return text

    @cached_property
    def ids(self) -> list[str]:
        return sorted(self.prompts)

    @cached_property
    def evaluator(self) -> Evaluator:
        if self.loaded is None and self.settings.evaluator is None:
            raise MetricUnavailable("no evaluator was named (metrics.evaluator=FOLDER)")
        return self.loaded or load_evaluator(self.settings.evaluator)

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return image_size(self.images, self.ids[0])

    def values(self, column: str) -> list[float]:
        """A column's values: in the order of `ids`, unless a metric gave them in its own."""
        if column not in self.scores:
            raise ValueError(f"{column}: no metric gave its scores; columns are names in score()")
        return list(self.scores[column].values())

    def once(self, *name: str, make: Callable[[], Value]) -> Value:
        """`make()` at the first call with this name, and the same object at every other."""
        if name not in self._kept:
            self._kept[name] = make()
        value: Value = self._kept[name]
        return value

    def batches(self) -> Iterator[Batch]:
        """All images in the order of `ids`, a part at a time; nothing is decoded before it is used.

        The same parts whatever is measured: the evaluator's numbers depend on them in the last
        bits.
        """
        for start in range(0, len(self.ids), _BATCH):
            yield Batch(ids=self.ids[start : start + _BATCH], inputs=self)

    def features(self, which: str, prefix: str) -> distances.Array:
        """Features of "images", "reference" or "dataset", float64 (N, D), rows in their order.

        Raises:
            MetricUnavailable: the extractor's weights are not there.
        """
        return self.once(
            "features", which, prefix, make=lambda: self._features(which, prefix=prefix)
        )

    @property
    def prefixes(self) -> list[str]:
        """Which feature extractors distances are measured with."""
        several = [self.settings.prefix, *([INCEPTION] if self.settings.inception else [])]
        return list(dict.fromkeys(several))

    @cached_property
    def dataset_is_paired(self) -> bool:
        """Whether the dataset's images are of the same prompts."""
        assert self.dataset is not None
        return sorted(self.dataset) == self.ids

    def _features(self, which: str, *, prefix: str) -> distances.Array:
        extractor, key = self.once("extractor", prefix, make=lambda: self._extractor(prefix))
        if which == "dataset":
            assert self.dataset is not None
            pictures = {name: self.dataset[name] for name in sorted(self.dataset)}
            contents = [f"{name}={picture.sha256()}" for name, picture in pictures.items()]
        else:
            folder = {"images": self.images, "reference": self.reference}[which]
            contents = folder_contents(folder, ids=self.ids)

        def compute() -> distances.Array:
            if which == "dataset":
                return distances.picture_features([*pictures.values()], extractor=extractor)
            return distances.folder_features(folder, ids=self.ids, extractor=extractor)

        return cached_array(
            None if which == "images" else self.settings.cache,
            kind="features",
            parts=[key, prefix, *contents],
            compute=compute,
        )

    def _extractor(self, prefix: str) -> tuple[distances.Extractor, str]:
        settings = self.settings
        if prefix != INCEPTION or settings.inception is None:
            return distances.evaluator_extractor(self.evaluator), self.evaluator.key
        extractor = distances.inception_extractor(
            settings.inception, sha256=settings.inception_sha256, file_key=settings.file_key
        )
        return extractor, settings.file_key(settings.inception / distances.INCEPTION_NAME)


@dataclass(kw_only=True)
class Batch:
    """Some of the images, decoded at the first use and then shared.

    Shapes: N images, H height, W width, C = 3 colour channels.
    """

    ids: list[str]
    inputs: Inputs

    @cached_property
    def images(self) -> torch.Tensor:
        """uint8 (N, H, W, 3)."""
        return read_batch(self.inputs.images, self.ids, first=self.inputs.ids[0])

    @cached_property
    def reference(self) -> torch.Tensor:
        """uint8 (N, H, W, 3), image i of the same prompt."""
        return read_batch(self.inputs.reference, self.ids, first=self.inputs.ids[0])

    @cached_property
    def float_images(self) -> torch.Tensor:
        """float32 (N, 3, H, W) in [0, 1]."""
        return to_float(self.images)

    @cached_property
    def float_reference(self) -> torch.Tensor:
        """float32 (N, 3, H, W) in [0, 1]."""
        return to_float(self.reference)

    @property
    def prompts(self) -> list[str]:
        return [self.inputs.text(name) for name in self.ids]
