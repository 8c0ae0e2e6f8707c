"""FD-DINOv2: Frechet distance of DINOv2's features, to the reference and to the data set."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.distances import frechet_distance
from evaluation.extractors import DINOV2, FILES
from evaluation.metrics.feature_distances import measure_distances
from evaluation.metrics.metric_inputs import Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric

SHOWN = (
    *(
        Shown(
            metric=f"fd_dinov2_dataset_{whose}_prompts",
            title=f"FD-DINOv2, dataset{said}",
            legend=f"Frechet distance of DINOv2 ViT-L/14's features to the dataset's images of "
            f"{words} prompts; lower is better; biased upwards at small n, so compare at equal n "
            "only; ± as of FID",
            place=place,
            shift_below_unquantized=True,
            biased_below=5000,
        )
        for whose, words, said, place in (
            ("same", "the same", "", 36),
            ("other", "other", " (other prompts)", 38),
        )
    ),
    *(
        Shown(
            metric=f"fd_dinov2_dataset_{whose}_prompts_delta",
            title="FD-DINOv2 - fp",
            legend="the distance before it less the unquantized model's; [95 % interval, paired by "
            "prompt]",
            place=place,
        )
        for whose, place in (("same", 37), ("other", 38))
    ),
    Shown(
        metric="fd_dinov2_reference",
        title="FD-DINOv2, reference",
        legend="Frechet distance of DINOv2 ViT-L/14's features to the unquantized model's images "
        "of the same prompts: fidelity, not quality; lower is better; ± as of FID",
        place=39,
        biased_below=5000,
    ),
)


@dataclass(kw_only=True)
class FdDinov2(MetricBase):
    name = "fd_dinov2"
    needs = frozenset({Need.reference, Need.dataset})
    higher_is_better = False
    weights = (FILES[DINOV2],)
    place = 61

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return measure_distances(
            inputs,
            extractors={self.name: DINOV2},
            distance=lambda a_ND, b_MD, _: frechet_distance(a_ND, b_MD),
            note=lambda _: "biased upwards at small n",
        )


METRIC = FdDinov2
