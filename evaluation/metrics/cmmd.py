"""CMMD: kernel distance of CLIP's features, to the reference's images and to the data set's."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.distances import Array, Distance, gaussian_kernel, kernel_distance, scaled
from evaluation.extractors import CLIP_336, FILES
from evaluation.metrics.feature_distances import measure_distances
from evaluation.metrics.metric_inputs import Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric

SHOWN = (
    *(
        Shown(
            metric=f"cmmd_dataset_{whose}_prompts",
            title=f"CMMD, dataset{said}",
            legend=f"1000 times the squared kernel distance of CLIP ViT-L/14-336's features to the "
            f"dataset's images of {words} prompts; lower is better; unbiased, so it may be "
            "negative and lies below what counts an image as its own partner; ± as of FID",
            digits=3,
            place=place,
            shift_below_unquantized=True,
        )
        for whose, words, said, place in (
            ("same", "the same", "", 32),
            ("other", "other", " (other prompts)", 34),
        )
    ),
    *(
        Shown(
            metric=f"cmmd_dataset_{whose}_prompts_delta",
            title="CMMD - fp",
            legend="the distance before it less the unquantized model's; [95 % interval, paired by "
            "prompt]",
            digits=3,
            place=place,
        )
        for whose, place in (("same", 33), ("other", 34))
    ),
    Shown(
        metric="cmmd_reference",
        title="CMMD, reference",
        legend="CMMD to the unquantized model's images of the same prompts: fidelity, not quality; "
        "lower is better; ± as of FID",
        digits=3,
        place=35,
    ),
)

SIGMA, SCALE = 10.0, 1000.0


@dataclass(kw_only=True)
class Cmmd(MetricBase):
    name = "cmmd"
    needs = frozenset({Need.reference, Need.dataset})
    higher_is_better = False
    weights = (FILES[CLIP_336],)
    place = 71

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return measure_distances(
            inputs, extractors={self.name: CLIP_336}, distance=clip_distance, note=_note
        )


METRIC = Cmmd


def clip_distance(a_ND: Array, b_MD: Array, paired: bool) -> Distance:
    """Of features of unit length.

    Source: Jayasumana et al. 2024 (arXiv:2401.09603), eq. 3, with sigma = 10 and times 1000; the
    authors' code takes the biased estimator, eq. 5 of Gretton et al. 2012 (JMLR 13).
    """
    kernel = gaussian_kernel(SIGMA)
    return scaled(kernel_distance(a_ND, b_MD, paired=paired, kernel=kernel), SCALE)


def _note(paired: bool) -> str:
    pairs = ", without terms of two images of one prompt" if paired else ""
    return f"unbiased: may be below 0{pairs}"
