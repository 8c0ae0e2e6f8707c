"""Multi-scale SSIM against the reference of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.metrics.ssim import SSIM_KERNEL_SIZE, Array, structural_similarity
from evaluation.records import Metric, MetricUnavailable
from evaluation.similarity import check_pair, similarity_metrics

SHOWN = (
    Shown(
        metric="ms_ssim",
        title="MS-SSIM",
        legend="to the reference's image, RGB, five scales; higher is better; [95 % interval]",
        digits=3,
        place=61,
    ),
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the finest
MIN_SIDE = SSIM_KERNEL_SIZE * 2 ** (len(WEIGHTS) - 1)  # 176: the coarsest scale holds a window


@dataclass(kw_only=True)
class MsSsim(MetricBase):
    name = "ms_ssim"
    needs = frozenset({Need.reference})
    higher_is_better = True
    columns = ("ms_ssim",)
    place = 21

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"ms_ssim": ms_ssim_per_image(batch.float_images, batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return similarity_metrics(
            "ms_ssim",
            torch.tensor(inputs.values("ms_ssim"), dtype=torch.float64),
            higher_is_better=True,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
            note="RGB, 11x11 Gaussian window, five scales",
        )


METRIC = MsSsim


def ms_ssim_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """MS-SSIM for each image, float64 (N,); a scale whose structure is opposite counts as 0.

    Raises:
        MetricUnavailable: a side of less than 176 pixels.

    Source: Wang, Simoncelli and Bovik 2003, eq. 7; scales by means of 2 x 2 pixels.
    """
    check_pair(images, reference)
    if min(images.shape[-2:]) < MIN_SIDE:
        raise MetricUnavailable(
            f"MS-SSIM's five scales need images of at least {MIN_SIDE} pixels a side; these are "
            f"{images.shape[-1]}x{images.shape[-2]} and are not resized"
        )
    pairs = zip(images.to(torch.float64).numpy(), reference.to(torch.float64).numpy(), strict=True)
    return torch.tensor([_ms_ssim(a_CHW, b_CHW) for a_CHW, b_CHW in pairs], dtype=torch.float64)


def _ms_ssim(a_CHW: Array, b_CHW: Array) -> float:
    product = 1.0
    for scale, weight in enumerate(WEIGHTS):
        similarity, structure = structural_similarity(a_CHW, b_CHW)
        last = scale == len(WEIGHTS) - 1
        product *= max(0.0, similarity if last else structure) ** weight
        a_CHW, b_CHW = _halved(a_CHW), _halved(b_CHW)
    return product


def _halved(values_CHW: Array) -> Array:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    channels, height, width = values_CHW.shape
    even = values_CHW[:, : height // 2 * 2, : width // 2 * 2]
    blocks = even.reshape(channels, height // 2, 2, width // 2, 2)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float64)
