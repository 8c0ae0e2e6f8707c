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
from evaluation.extractors import (
    FILES,
    INCEPTION,
    Extractor,
    Picture,
    evaluator_extractor,
    picture_features,
    weighted_extractor,
)
from evaluation.feature_cache import file_hash
from evaluation.images import FolderPicture, check_ids, image_size, read_batch, to_float
from evaluation.judges.read_weights import checked_device
from evaluation.records import MetricUnavailable
from evaluation.statistics import RESAMPLES
from evaluation.weight_files import Weights

TORCHVISION_FILES = ("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth")

Value = TypeVar("Value")


@dataclass(kw_only=True)
class MetricSettings:
    """What all metrics share.

    Args:
        evaluator: folder of an open_clip model; None: what needs one is not measured.
        prefix: names the evaluator's features in `fid_{prefix}_reference` and so on.
        weights: folder with the files of `evaluation/weights.yaml`, as far as they are at hand.
        inception: another folder, for Inception's file alone.
        device: where features and judges are computed.
        batch: images that are in memory, and in a network, at once.
        resamples: of the bootstrap over prompts.
        cache: features and judges' scores are kept here, under names made of what they depend on.
        file_key: gives the sha256 of a file of weights.
    """

    evaluator: Path | None = None
    prefix: str = "evaluator"
    weights: Path | None = None
    inception: Path | None = None
    device: str = "cpu"
    batch: int = 64
    seed: int = 0
    resamples: int = RESAMPLES
    cache: Path | None = None
    file_key: Callable[[Path], str] = file_hash

    def __post_init__(self) -> None:
        distances.check_prefix(self.prefix)
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}; measure at least 1 image at once")

    @property
    def files(self) -> Weights:
        """Where the files of weights are looked for; torchvision's own also where it keeps them."""
        kept_by_torchvision = Path(torch.hub.get_dir()) / "checkpoints"
        more = dict.fromkeys(TORCHVISION_FILES, kept_by_torchvision)
        if self.inception is not None:
            more[FILES[INCEPTION]] = self.inception
        return Weights(folder=self.weights, more=more, file_key=self.file_key)

    @property
    def prefixes(self) -> list[str]:
        """Which extractors' features FID and KID are of: the evaluator's, Inception's.

        Inception's where its weights were spoken of, or where there is nothing else.
        """
        own = [self.prefix] if self.evaluator is not None else []
        asked = self.weights is not None or self.inception is not None
        return list(dict.fromkeys([*own, *([INCEPTION] if asked or not own else [])]))


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
        networks: what is loaded of weights, by name; one given to several inputs with the same
            settings is shared by them.
    """

    images: Path
    reference: Path
    prompts: Mapping[str, str | None]
    settings: MetricSettings
    dataset: Mapping[str, PictureFile] | None = None
    step_errors: Mapping[str, Sequence[float]] | None = None
    loaded: Evaluator | None = None
    networks: dict[str, Any] = field(default_factory=dict, repr=False)
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
        """
        Raises:
            MetricUnavailable: none was named.
        """
        if self.loaded is not None:
            return self.loaded
        if self.settings.evaluator is None:
            raise MetricUnavailable("no evaluator was named: metrics.evaluator=FOLDER of open_clip")
        return load_evaluator(self.settings.evaluator, device=str(self.device))

    @cached_property
    def device(self) -> torch.device:
        return checked_device(self.settings.device)

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

    def network(self, name: str, *, make: Callable[[], Value]) -> Value:
        """`make()` at the first call with this name of all who share `networks`.

        Raises:
            MetricUnavailable: the file does not fit: it costs what is measured with it, no more.
        """
        if name not in self.networks:
            try:
                self.networks[name] = make()
            except (ValueError, KeyError) as error:
                raise MetricUnavailable(f"{name} does not fit: {error}") from error
        value: Value = self.networks[name]
        return value

    def batches(self) -> Iterator[Batch]:
        """All images in the order of `ids`, a part at a time; nothing is decoded before it is used.

        The same parts whatever is measured: the evaluator's numbers depend on them in the last
        bits.
        """
        for start in range(0, len(self.ids), self.settings.batch):
            yield Batch(ids=self.ids[start : start + self.settings.batch], inputs=self)

    def features(self, which: str, prefix: str) -> distances.Array:
        """Features of "images", "reference" or "dataset", float64 (N, D), rows in their order.

        Raises:
            MetricUnavailable: the extractor's weights are not there.
        """
        return self.once(
            "features", which, prefix, make=lambda: self._features(which, prefix=prefix)
        )

    @cached_property
    def dataset_is_paired(self) -> bool:
        """Whether the dataset's images are of the same prompts."""
        assert self.dataset is not None
        return sorted(self.dataset) == self.ids

    def contents(self, which: str, ids: Sequence[str]) -> list[str]:
        """The sha256 of each image of "images" or "reference"; every file is read once."""
        known = self.once("contents", which, make=dict[str, str])
        folder = {"images": self.images, "reference": self.reference}[which]
        for name in ids:
            if name not in known:
                known[name] = FolderPicture(path=folder / f"{name}.png").sha256()
        return [known[name] for name in ids]

    def _features(self, which: str, *, prefix: str) -> distances.Array:
        settings = self.settings
        extractor = self._extractor(prefix)
        return picture_features(
            self._pictures(which), extractor=extractor, cache=settings.cache, batch=settings.batch
        )

    def _pictures(self, which: str) -> list[Picture]:
        if which == "dataset":
            assert self.dataset is not None
            return [self.dataset[name] for name in sorted(self.dataset)]
        folder = {"images": self.images, "reference": self.reference}[which]
        check_ids(folder, self.ids)
        return [FolderPicture(path=folder / f"{name}.png") for name in self.ids]

    def _extractor(self, prefix: str) -> Extractor:
        settings = self.settings
        if prefix == settings.prefix and settings.evaluator is not None:
            return self.once("extractor", make=lambda: evaluator_extractor(self.evaluator))
        return self.network(
            f"extractor {prefix}",
            make=lambda: weighted_extractor(prefix, weights=settings.files, device=self.device),
        )


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
