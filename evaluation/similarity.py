"""What fidelity image by image shares: PSNR, SSIM and LPIPS against the same prompt's reference.

Images are float (N, 3, H, W) in [0, 1] at full resolution. The data range is 1.0 always, never
taken from the images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from evaluation.records import Metric
from evaluation.statistics import RESAMPLES, metric_from_values

DATA_RANGE = 1.0
FLAT_STD = 2 / 255  # an image whose channels all vary less than this shows nothing


def similarity_metrics(
    name: str,
    values_N: torch.Tensor,
    *,
    higher_is_better: bool,
    seed: int,
    resamples: int = RESAMPLES,
    note: str = "",
) -> dict[str, Metric]:
    """Mean, median and the bad tail (10th percentile, or 90th where lower is better)."""
    values = values_N.to(torch.float64).numpy()
    mean = metric_from_values(
        values,
        higher_is_better=higher_is_better,
        against="reference",
        seed=seed,
        resamples=resamples,
        note=note,
    )
    return {name: mean} | order_statistics(name, values, higher_is_better=higher_is_better, unit="")


def order_statistics(
    name: str, values: np.ndarray[Any, Any], *, higher_is_better: bool, unit: str
) -> dict[str, Metric]:
    """`{name}_median` and the bad tail, `{name}_p10` or `{name}_p90`."""
    tail = 10 if higher_is_better else 90
    metrics = {}
    for suffix, percent in (("median", 50), (f"p{tail}", tail)):
        metrics[f"{name}_{suffix}"] = Metric(
            value=float(np.percentile(values, percent, method="inverted_cdf")),
            higher_is_better=higher_is_better,
            n=len(values),
            against="reference",
            note=f"{percent}th percentile over images",
            unit=unit,
        )
    return metrics


def check_pair(images: torch.Tensor, reference: torch.Tensor) -> None:
    """Refuse what is not two float (N, 3, H, W) of one size, in [0, 1]."""
    for what, tensor in (("images", images), ("reference", reference)):
        if not tensor.is_floating_point() or tensor.ndim != 4 or tensor.shape[1] != 3:
            raise ValueError(
                f"{what}: {tensor.dtype} of shape {tuple(tensor.shape)}; give float "
                "(N, 3, H, W) in [0, 1]"
            )
        if tensor.min() < 0 or tensor.max() > 1:
            raise ValueError(
                f"{what}: values in [{tensor.min():.3g}, {tensor.max():.3g}]; scale to [0, 1]"
            )
    if images.shape != reference.shape:
        raise ValueError(
            f"images are {tuple(images.shape)}, the reference is {tuple(reference.shape)}; "
            "both must have one size: nothing is resized"
        )


def widest_channel_std(images: torch.Tensor) -> torch.Tensor:
    """The largest standard deviation of an image's channels, (N,); NaN where a pixel is no number.

    Args:
        images: float (N, 3, H, W).
    """
    return images.to(torch.float64).flatten(2).std(dim=2, correction=0).amax(dim=1)
