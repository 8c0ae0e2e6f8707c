"""What a metric may say, and the words it is shown with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch

from evaluation.metrics.metric_inputs import Batch, Inputs, MetricSettings
from evaluation.outside_files import OutsideFile
from evaluation.records import Metric
from evaluation.statistics import metric_from_values

LAST = 1000  # the place of what asks for none
FEATURES = "{features}"
DELTA = "_delta"  # ends the name of an entry that is a difference from the unquantized model's


class Need(Enum):
    """What a metric reads beside the images."""

    reference = "reference"  # the unquantized model's images of the same prompts
    dataset = "dataset"  # the data set's own images
    prompts = "prompts"  # their texts
    evaluator = "evaluator"
    step_errors = "step_errors"  # teacher-forced; whoever needs these alone reads no image


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a table shows a metric. Presentation alone: nothing here decides a number.

    `metric` names an entry of the record, or several: with `{features}` in it, those of every
    feature extractor, and `{features}` in title and legend is the extractor's name.
    """

    metric: str
    title: str
    legend: str
    per_image: str = ""  # the column whose mean it is; "": the metric's first, or of its own name
    scale: float = 1.0  # of what is printed only
    digits: int = 2  # where there is no interval
    place: int = LAST  # of the column
    shift_below_unquantized: bool = False  # better than the unquantized model's: never bold
    biased_below: int | None = None  # fewer images than this: the title says so


@dataclass(kw_only=True)
class MetricBase:
    """One metric. A subclass is a dataclass whose fields are its settings.

    The default methods serve one number an image: then `score` is all that is missing. A metric of
    the whole set has no columns and its own `measure`, which may leave in `inputs.scores`, under
    the name of an entry, one number an image whose mean the entry is: then its rows are compared
    prompt by prompt too. `MetricUnavailable`, raised by any of the three, becomes the reason in the
    entry `name`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    higher_is_better: ClassVar[bool | None]
    against: ClassVar[str] = "reference"
    columns: ClassVar[tuple[str, ...]] = ()  # per image
    weights: ClassVar[tuple[str, ...]] = ()  # files of `evaluation/weights.yaml` that it reads
    place: ClassVar[int] = LAST  # among the metrics, and of its columns in the per-image file

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Name -> (N,) for the batch's N images: the columns, and more for `measure` alone."""
        return {}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        """Column -> prompt id -> value, of what is not read from images; a prompt may lack one."""
        return {}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        """The record's entries; `inputs.scores` holds what `score` and `prompt_scores` gave."""
        metric = metric_from_values(
            inputs.values(self.columns[0]),
            higher_is_better=self.higher_is_better,
            against=self.against,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
        )
        return {self.name: metric}

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        """What the numbers depend on beside the images, the prompts and the metric's own fields."""
        own = {"seed": settings.seed, "resamples": settings.resamples}
        return own | networks_identity(settings, weights=self.weights) if self.weights else own

    def outside_files(self, settings: MetricSettings) -> Sequence[OutsideFile]:
        """Files that nobody may pass on and without which it is not measured."""
        return [settings.files.described(name) for name in self.weights]


def networks_identity(settings: MetricSettings, *, weights: Sequence[str]) -> dict[str, Any]:
    """What a network's numbers depend on: its weights, or that they are missing, and in their last
    digits the kind of device and what is computed at once."""
    return {
        "weights": {name: settings.files.identity(name) for name in weights},
        "device": torch.device(settings.device).type,
        "batch": settings.batch,
    }


def unavailable(reason: str, *, against: str, higher_is_better: bool | None = None) -> Metric:
    """A metric that was asked for and could not be had."""
    return Metric(value=None, higher_is_better=higher_is_better, n=0, against=against, note=reason)
