"""PSNR in dB against the reference of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric, MetricUnavailable
from evaluation.similarity import (
    DATA_RANGE,
    FLAT_STD,
    check_pair,
    order_statistics,
    widest_channel_std,
)
from evaluation.statistics import RESAMPLES, metric_from_values

SHOWN = (
    Shown(
        metric="psnr",
        title="PSNR dB",
        legend="to the reference's image of the same prompt, data range 1, mean of per-image dB "
        "over the images that are not identical to it, of which '= k' are; higher is better; "
        "[95 % interval]",
        place=50,
    ),
)


_WIDEST_STD = "reference_widest_channel_std"  # scores for `measure` alone


@dataclass(kw_only=True)
class Psnr(MetricBase):
    name = "psnr"
    needs = frozenset({Need.reference})
    higher_is_better = True
    columns = ("psnr",)
    place = 10

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        psnr_N = psnr_per_image(batch.float_images, batch.float_reference)
        return {"psnr": psnr_N, _WIDEST_STD: widest_channel_std(batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return psnr_metrics(
            torch.tensor(inputs.values("psnr"), dtype=torch.float64),
            flat_N=torch.tensor(inputs.values(_WIDEST_STD)) < FLAT_STD,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
        )


METRIC = Psnr


def psnr_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """PSNR in dB for each image, float64 (N,); identical images give infinity.

    Source: 10 log10(range^2 / MSE) with range 1.0, the MSE over pixels and channels of one image.
    """
    check_pair(images, reference)
    squared = (images.to(torch.float64) - reference.to(torch.float64)).square()
    return 10 * torch.log10(DATA_RANGE**2 / squared.flatten(1).mean(dim=1))


def psnr_metrics(
    psnr_N: torch.Tensor, *, flat_N: torch.Tensor, seed: int, resamples: int = RESAMPLES
) -> dict[str, Metric]:
    """`psnr` (mean of per-image dB), `psnr_median`, `psnr_p10`, `psnr_identical`.

    An identical image is infinitely near, and one such would make the mean infinite and hide all
    others: the mean is over the rest, and `psnr_identical` counts them. All identical: infinite.
    Two images of one flat colour are identical whatever was done: they say nothing and are not
    counted.

    Args:
        flat_N: bool (N,), where the reference's image is of one colour.

    Raises:
        MetricUnavailable: every identical image is flat, and there is no other.
    """
    psnr = psnr_N.to(torch.float64)
    same_N = torch.isinf(psnr)
    seen = psnr[~(same_N & flat_N)].numpy()
    flat = len(psnr_N) - len(seen)
    if not len(seen):
        raise MetricUnavailable("every image is of one flat colour, and so is the reference's")
    identical = int(np.isinf(seen).sum())
    note = "mean of per-image dB"
    if identical == len(seen):
        note += "; all images are identical to the reference's"
        values = seen
    else:
        values = seen[np.isfinite(seen)]
        note += f"; {identical} of {len(psnr_N)} images are identical and left out"
    if flat:
        note += f"; {flat} are of one flat colour, as the reference's, and say nothing"
    mean = metric_from_values(
        values,
        higher_is_better=True,
        against="reference",
        seed=seed,
        resamples=resamples,
        note=note,
        unit="dB",
    )
    mean.n = len(psnr_N)
    count = Metric(
        value=float(identical),
        higher_is_better=True,
        n=len(psnr_N),
        against="reference",
        note="images equal to the reference's in every pixel",
        unit="images",
    )
    spread = order_statistics("psnr", seen, higher_is_better=True, unit="dB")
    return {"psnr": mean, "psnr_identical": count} | spread
