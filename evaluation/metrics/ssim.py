"""SSIM against the reference of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric, MetricUnavailable
from evaluation.similarity import DATA_RANGE, check_pair, similarity_metrics

SHOWN = (
    Shown(
        metric="ssim",
        title="SSIM",
        legend="to the reference's image, RGB, 11x11 Gaussian; higher is better; [95 % interval]",
        digits=3,
        place=60,
    ),
)

SSIM_KERNEL_SIZE = 11
SSIM_SIGMA = 1.5

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(kw_only=True)
class Ssim(MetricBase):
    name = "ssim"
    needs = frozenset({Need.reference})
    higher_is_better = True
    columns = ("ssim",)
    place = 20

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"ssim": ssim_per_image(batch.float_images, batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return similarity_metrics(
            "ssim",
            torch.tensor(inputs.values("ssim"), dtype=torch.float64),
            higher_is_better=True,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
            note="RGB, 11x11 Gaussian window",
        )


METRIC = Ssim


def ssim_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SSIM for each image, float64 (N,): RGB, 11x11 Gaussian window, sigma 1.5.

    The window is applied along one axis after the other, which is the same and costs 2 x 11
    products a pixel instead of 121. The border is mirrored and counted (others crop it), as in
    torchmetrics, so small images differ from other packages in the third digit or earlier.

    Raises:
        MetricUnavailable: a side that is shorter than the window.

    Source: Wang et al. 2004, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """
    check_pair(images, reference)
    if min(images.shape[-2:]) < SSIM_KERNEL_SIZE:
        raise MetricUnavailable(
            f"SSIM's window needs images of at least {SSIM_KERNEL_SIZE} pixels a side; these are "
            f"{images.shape[-1]}x{images.shape[-2]} and are not resized"
        )
    pairs = zip(images.to(torch.float64).numpy(), reference.to(torch.float64).numpy(), strict=True)
    return torch.tensor([structural_similarity(a, b)[0] for a, b in pairs], dtype=torch.float64)


def structural_similarity(a_CHW: Array, b_CHW: Array) -> tuple[float, float]:
    """SSIM of two images, and its factor of contrast and structure alone.

    Means over all pixels, of the factor over those whose window lies inside: torchmetrics' rules.
    """
    mean_a, mean_b = _window(a_CHW), _window(b_CHW)
    square_a = (_window(a_CHW * a_CHW) - mean_a * mean_a).clip(min=0)
    square_b = (_window(b_CHW * b_CHW) - mean_b * mean_b).clip(min=0)
    product = _window(a_CHW * b_CHW) - mean_a * mean_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * product + c2) / (square_a + square_b + c2)
    inside = slice(SSIM_KERNEL_SIZE // 2, -(SSIM_KERNEL_SIZE // 2))
    return float((light * structure).mean()), float(structure[:, inside, inside].mean())


def _window(values_CHW: Array) -> Array:
    """The Gaussian mean about each pixel of each channel."""
    smoothed = gaussian_filter(
        values_CHW, SSIM_SIGMA, mode="mirror", radius=SSIM_KERNEL_SIZE // 2, axes=(1, 2)
    )
    return np.asarray(smoothed, dtype=np.float64)
