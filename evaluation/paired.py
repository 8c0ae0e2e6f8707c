"""Fidelity image by image: PSNR, SSIM and LPIPS against the reference of the same prompt.

Images are float (N, 3, H, W) in [0, 1] at full resolution. The data range is 1.0 always, never
taken from the images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.records import Metric, MetricUnavailable
from evaluation.statistics import RESAMPLES, metric_from_values

DATA_RANGE = 1.0
SSIM_KERNEL_SIZE = 11
SSIM_SIGMA = 1.5
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # the name under which torchvision stores it
LPIPS_MIN_SIDE = 32  # AlexNet's pooling leaves nothing of smaller images
BAD_CASE_LPIPS = 0.5
_BATCH = 64


def psnr_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """PSNR in dB for each image, float64 (N,); identical images give infinity.

    Source: 10 log10(range^2 / MSE) with range 1.0, the MSE over pixels and channels of one image.
    """
    _check_pair(images, reference)
    squared = (images.to(torch.float64) - reference.to(torch.float64)).square()
    return 10 * torch.log10(DATA_RANGE**2 / squared.flatten(1).mean(dim=1))


def ssim_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SSIM for each image, float64 (N,): torchmetrics, RGB, 11x11 Gaussian window, sigma 1.5.

    The border is mirrored and counted (others crop it), so small images differ from other
    packages in the third digit or earlier.

    Source: Wang et al. 2004, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(images, reference)
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


def load_lpips() -> torch.nn.Module:
    """LPIPS with AlexNet, from weights that already lie on this machine.

    Raises:
        MetricUnavailable: torchvision's AlexNet is not in torch's hub folder. No download is tried.
    """
    checkpoint = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    if not checkpoint.is_file():
        raise MetricUnavailable(
            f"LPIPS needs torchvision's AlexNet weights at {checkpoint}; put {LPIPS_BACKBONE} "
            "there, or set TORCH_HOME to a folder that holds hub/checkpoints"
        )
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex")
    network.requires_grad_(False)
    return network


def lpips_per_image(
    network: torch.nn.Module, images: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """LPIPS distance for each image, float64 (N,), inputs mapped from [0, 1] to [-1, 1].

    Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1, version 0.1 of the linear heads.
    """
    _check_pair(images, reference)
    if min(images.shape[-2:]) < LPIPS_MIN_SIDE:
        raise MetricUnavailable(
            f"LPIPS with AlexNet needs images of at least {LPIPS_MIN_SIDE} pixels a side; "
            f"these are {images.shape[-1]}x{images.shape[-2]} and are not resized"
        )
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            a = images[start : start + _BATCH].to(torch.float32)
            b = reference[start : start + _BATCH].to(torch.float32)
            parts.append(network(a, b, normalize=True).reshape(-1).to(torch.float64))
    return torch.cat(parts)


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
    return {"psnr": mean} | _order_statistics(
        "psnr", psnr_N.numpy(), higher_is_better=True, unit="dB"
    )


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
    return {name: mean} | _order_statistics(
        name, values, higher_is_better=higher_is_better, unit=""
    )


def bad_case_rate(lpips_N: torch.Tensor, *, seed: int, resamples: int = RESAMPLES) -> Metric:
    """Share of images with LPIPS above `BAD_CASE_LPIPS`: what a mean hides."""
    return metric_from_values(
        (lpips_N > BAD_CASE_LPIPS).to(torch.float64).numpy(),
        higher_is_better=False,
        against="reference",
        seed=seed,
        resamples=resamples,
        note=f"share of images with LPIPS > {BAD_CASE_LPIPS}",
    )


def _order_statistics(
    name: str, values: np.ndarray[Any, Any], *, higher_is_better: bool, unit: str
) -> dict[str, Metric]:
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


def _check_pair(images: torch.Tensor, reference: torch.Tensor) -> None:
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
