"""MDSI: how far an image looks from the reference's, by gradients and colours; needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import correlate1d

from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric
from evaluation.similarity import check_pair, similarity_metrics

SHOWN = (
    Shown(
        metric="mdsi",
        title="MDSI",
        legend="mean deviation similarity index to the reference's image (gradients and colours; "
        "no weights), 0 where identical; lower is better; [95 % interval]",
        digits=3,
        place=65,
    ),
)

Array = np.ndarray[Any, np.dtype[np.float64]]

_C1, _C2, _C3 = 140.0, 55.0, 550.0  # of levels 0 to 255
_GRADIENT_SHARE = 0.6
_POWER = 0.25  # of the map, and of the pooled deviation
_SIDE = 256  # pixels to which means of blocks bring the shorter side
_TO_LHM = np.array([[0.2989, 0.5870, 0.1140], [0.30, 0.04, -0.35], [0.34, -0.60, 0.17]])


@dataclass(kw_only=True)
class Mdsi(MetricBase):
    name = "mdsi"
    needs = frozenset({Need.reference})
    higher_is_better = False
    columns = ("mdsi",)
    place = 22

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"mdsi": mdsi_per_image(batch.float_images, batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return similarity_metrics(
            "mdsi",
            torch.tensor(inputs.values("mdsi"), dtype=torch.float64),
            higher_is_better=False,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
            note="gradients and colours, means of blocks to 256 pixels",
        )


METRIC = Mdsi


def mdsi_per_image(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """MDSI for each image, float64 (N,); 0 for identical ones.

    Source: Nafchi et al. 2016 (arXiv:1608.07433), eq. 3 to 14, with the authors' constants and the
    sum of both maps.
    """
    check_pair(images, reference)
    pairs = zip(images.to(torch.float64).numpy(), reference.to(torch.float64).numpy(), strict=True)
    return torch.tensor([_mdsi(a_CHW, b_CHW) for a_CHW, b_CHW in pairs], dtype=torch.float64)


def _mdsi(a_CHW: Array, b_CHW: Array) -> float:
    a, b = (np.tensordot(_TO_LHM, _smaller(255 * image), axes=1) for image in (a_CHW, b_CHW))
    edges_a, edges_b, edges_both = (_edges(light) for light in (a[0], b[0], (a[0] + b[0]) / 2))
    gradients = (
        _alike(edges_a, edges_b, _C1)
        + _alike(edges_a, edges_both, _C2)
        - _alike(edges_b, edges_both, _C2)
    )
    colours = (2 * (a[1:] * b[1:]).sum(axis=0) + _C3) / (
        (a[1:] ** 2 + b[1:] ** 2).sum(axis=0) + _C3
    )
    # below 0 it has a complex root, whose distance from the mean counts
    rooted = (_GRADIENT_SHARE * gradients + (1 - _GRADIENT_SHARE) * colours + 0j) ** _POWER
    return float(np.abs(rooted - rooted.mean()).mean() ** _POWER)


def _smaller(image_CHW: Array) -> Array:
    """Means of f x f blocks, f = shorter side / 256 rounded; black beyond the border."""
    size = max(1, round(min(image_CHW.shape[1:]) / _SIDE))
    before, after = (size - 1) // 2, size // 2
    channels = len(image_CHW)
    padded = np.pad(image_CHW, ((0, 0), (before, after), (before, after)))
    height, width = (length // size for length in padded.shape[1:])
    blocks = padded[:, : height * size, : width * size].reshape(channels, height, size, width, size)
    return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float64)


def _edges(light_HW: Array) -> Array:
    """Magnitude of Prewitt's gradient; black beyond the border."""
    step, mean = np.array([1.0, 0.0, -1.0]), np.full(3, 1 / 3)

    def along(axis: int) -> Array:
        stepped = correlate1d(light_HW, step, axis=axis, mode="constant")
        return np.asarray(correlate1d(stepped, mean, axis=1 - axis, mode="constant"))

    return np.hypot(along(0), along(1))


def _alike(a: Array, b: Array, constant: float) -> Array:
    return np.asarray((2 * a * b + constant) / (a**2 + b**2 + constant), dtype=np.float64)
