"""PSNR in dB against the reference of the same prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric
from evaluation.similarity import DATA_RANGE, check_pair, order_statistics
from evaluation.statistics import RESAMPLES, metric_from_values

SHOWN = (
    Shown(
        metric="psnr",
        title="PSNR dB",
        legend="to the reference's image of the same prompt, data range 1, mean of per-image "
        "dB, where an identical image enters at the PSNR of one level in one pixel if others "
        "are not identical; higher is better; [95 % interval]",
        place=50,
    ),
)


@dataclass(kw_only=True)
class Psnr(MetricBase):
    name = "psnr"
    needs = frozenset({Need.reference})
    higher_is_better = True
    columns = ("psnr",)
    place = 10

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"psnr": psnr_per_image(batch.float_images, batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        height, width = inputs.image_size
        return psnr_metrics(
            torch.tensor(inputs.values("psnr"), dtype=torch.float64),
            height=height,
            width=width,
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


def largest_finite_psnr_db(*, height: int, width: int) -> float:
    """PSNR of two 8-bit RGB images that differ by one level in one channel of one pixel."""
    return 10 * math.log10(255**2 * 3 * height * width)


def psnr_metrics(
    psnr_N: torch.Tensor, *, height: int, width: int, seed: int, resamples: int = RESAMPLES
) -> dict[str, Metric]:
    """`psnr` (mean of per-image dB), `psnr_median`, `psnr_p10`.

    All identical: infinite. Some identical: one infinity would make the mean infinite and hide all
    others, so they enter the mean (not median and p10) at the largest finite PSNR an 8-bit image of
    this size can have, and the note says how many they are.
    """
    values = psnr_N.to(torch.float64).numpy()
    identical = int(np.isinf(values).sum())
    ceiling = largest_finite_psnr_db(height=height, width=width)
    note = "mean of per-image dB"
    if 0 < identical < len(values):
        note += f"; {identical} of {len(values)} images are identical and enter at {ceiling:.1f} dB"
        values = np.minimum(values, ceiling)
    elif identical:
        note += "; all images are identical to the reference"
    mean = metric_from_values(
        values,
        higher_is_better=True,
        against="reference",
        seed=seed,
        resamples=resamples,
        note=note,
        unit="dB",
    )
    return {"psnr": mean} | order_statistics(
        "psnr", psnr_N.numpy(), higher_is_better=True, unit="dB"
    )
