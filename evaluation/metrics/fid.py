"""Frechet distance of features, to the reference's images and to the data set's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluation.distances import frechet_distance
from evaluation.metrics.feature_distances import distances_identity, measure_distances
from evaluation.metrics.metric_inputs import Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric

SHOWN = (
    Shown(
        metric="fid_{features}_dataset",
        title="FID {features}, dataset",
        legend="Frechet distance of {features} features to the dataset's images; lower is "
        "better; biased upwards at small n, so compare at equal n only; ± is one standard "
        "deviation over random halves (of the same prompts, where both sets are), no "
        "confidence interval",
        place=10,
        shift_below_unquantized=True,
    ),
    Shown(
        metric="fid_{features}_reference",
        title="FID {features}, reference",
        legend="the same to the unquantized model's images of the same prompts: fidelity, not "
        "quality; lower is better; ± as before",
        place=20,
    ),
)

WIDEST_RESAMPLED_FEATURES = 256  # beyond this a Frechet distance is too dear to repeat


@dataclass(kw_only=True)
class Fid(MetricBase):
    name = "fid"
    needs = frozenset({Need.reference, Need.dataset, Need.evaluator})
    higher_is_better = False
    place = 60

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return measure_distances(
            inputs,
            name=self.name,
            distance=lambda a_ND, b_MD, _: frechet_distance(a_ND, b_MD),
            note=lambda _: "biased upwards at small n",
            widest_resampled=WIDEST_RESAMPLED_FEATURES,
        )

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        return distances_identity(settings)


METRIC = Fid
