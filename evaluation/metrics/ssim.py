"""SSIM against the reference of the same prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric
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
            note="torchmetrics, RGB, 11x11 Gaussian window",
        )


METRIC = Ssim


def ssim_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SSIM for each image, float64 (N,): torchmetrics, RGB, 11x11 Gaussian window, sigma 1.5.

    The border is mirrored and counted (others crop it), so small images differ from other
    packages in the third digit or earlier.

    Source: Wang et al. 2004, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(images, reference)
    parts = []
    # One by one: the same values as of a batch, four times as fast in float64 on a CPU.
    for index in range(len(images)):
        value = structural_similarity_index_measure(
            images[index : index + 1].to(torch.float64),
            reference[index : index + 1].to(torch.float64),
            gaussian_kernel=True,
            sigma=SSIM_SIGMA,
            kernel_size=SSIM_KERNEL_SIZE,
            reduction="none",
            data_range=DATA_RANGE,
        )
        assert isinstance(value, torch.Tensor)
        parts.append(value.reshape(-1))
    return torch.cat(parts)
