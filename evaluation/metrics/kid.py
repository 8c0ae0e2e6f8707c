"""Kernel distance of features, to the reference's images and to the data set's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances import kernel_distance
from evaluation.metrics.feature_distances import (
    by_prefix,
    distances_files,
    distances_identity,
    measure_distances,
)
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.outside_files import OutsideFile
from evaluation.records import Metric

SHOWN = tuple(
    Shown(
        metric=f"kid_{{features}}_dataset_{whose}_prompts",
        title=f"KID {{features}} x1000, dataset{said}",
        legend=f"kernel distance of {{features}} features to the dataset's images of "
        f"{words} prompts, times 1000; lower is better; unbiased (two images of one prompt are "
        "never compared), so it may be negative; ± as of FID",
        scale=1000,
        place=place,
        shift_below_unquantized=True,
    )
    for whose, words, said, place in (
        ("same", "the same", "", 30),
        ("other", "other", " (other prompts)", 31),
    )
)


@dataclass(kw_only=True)
class Kid(MetricBase):
    name = "kid"
    needs = frozenset({Need.reference, Need.dataset, Need.evaluator})
    higher_is_better = False
    place = 70

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return measure_distances(
            inputs,
            extractors=by_prefix(self.name, inputs),
            distance=lambda a_ND, b_MD, paired: kernel_distance(a_ND, b_MD, paired=paired),
            note=_note,
        )

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        return distances_identity(settings)

    def outside_files(self, settings: MetricSettings) -> Sequence[OutsideFile]:
        return distances_files(settings)


METRIC = Kid


def _note(paired: bool) -> str:
    pairs = ", without terms of two images of one prompt" if paired else ""
    return f"unbiased: may be below 0{pairs}"
