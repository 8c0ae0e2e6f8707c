"""Frechet distance of features, to the reference's images and to the data set's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.distances import frechet_distance
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

SHOWN = (
    *(
        Shown(
            metric=f"fid_{{features}}_dataset_{whose}_prompts",
            title=f"FID {{features}}, dataset{said}",
            legend=f"Frechet distance of {{features}} features to the dataset's images of "
            f"{words} prompts; lower is better; biased upwards at small n, so compare at equal n "
            "only; ± is one standard deviation, by each image's influence, no confidence interval",
            place=place,
            shift_below_unquantized=True,
            biased_below=5000,
        )
        for whose, words, said, place in (
            ("same", "the same", "", 10),
            ("other", "other", " (other prompts)", 12),
        )
    ),
    *(
        Shown(
            metric=f"fid_{{features}}_dataset_{whose}_prompts_delta",
            title="FID {features} - fp",
            legend="the distance before it less the unquantized model's; [95 % interval, paired by "
            "prompt], which is far narrower than either distance's own spread",
            place=place,
        )
        for whose, place in (("same", 11), ("other", 13))
    ),
    Shown(
        metric="fid_{features}_reference",
        title="FID {features}, reference",
        legend="Frechet distance to the unquantized model's images of the same prompts: fidelity, "
        "not quality; lower is better; ± as of FID to the dataset",
        place=20,
        biased_below=5000,
    ),
)


@dataclass(kw_only=True)
class Fid(MetricBase):
    name = "fid"
    needs = frozenset({Need.reference, Need.dataset, Need.evaluator})
    higher_is_better = False
    place = 60

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return measure_distances(
            inputs,
            extractors=by_prefix(self.name, inputs),
            distance=lambda a_ND, b_MD, _: frechet_distance(a_ND, b_MD),
            note=lambda _: "biased upwards at small n",
        )

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        return distances_identity(settings)

    def outside_files(self, settings: MetricSettings) -> Sequence[OutsideFile]:
        return distances_files(settings)


METRIC = Fid
