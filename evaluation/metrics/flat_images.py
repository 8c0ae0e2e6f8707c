"""How many images show nothing: one colour, or NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.images import to_float
from evaluation.metrics.metric_inputs import Batch, Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase
from evaluation.records import Metric
from evaluation.similarity import FLAT_STD, widest_channel_std

SHOWN = ()  # no column: a row with such images is marked

_WIDEST_STD = "widest_channel_std"  # scores for `measure` alone


@dataclass(kw_only=True)
class FlatImages(MetricBase):
    name = "damaged_images"
    higher_is_better = False
    against = "images"
    place = 80

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {_WIDEST_STD: widest_channel_std(batch.float_images)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        damaged = _damaged(inputs.scores[_WIDEST_STD])
        listed = "; ".join(f"{name}: {what}" for name, what in damaged.items())
        metric = Metric(
            value=float(len(damaged)),
            higher_is_better=False,
            n=len(inputs.ids),
            against=self.against,
            note=f"scored like all others; {listed}" if damaged else "none is flat",
            unit="images",
        )
        return {self.name: metric}

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        return {}


METRIC = FlatImages


def find_damaged(images: torch.Tensor, *, ids: Sequence[str]) -> dict[str, str]:
    """The ids of images that show nothing, each with what is wrong.

    An image is flat when each of its channels varies less than `FLAT_STD` (black, grey, one
    colour). NaN and infinities can only be seen in float images (N, 3, H, W) in [0, 1].
    """
    if len(ids) != images.shape[0]:
        raise ValueError(f"{len(ids)} ids for {images.shape[0]} images; give one id an image")
    pictures = to_float(images) if images.dtype == torch.uint8 else images
    return _damaged(dict(zip(ids, widest_channel_std(pictures).tolist(), strict=True)))


def _damaged(stds: Mapping[str, float]) -> dict[str, str]:
    damaged = {}
    for name, std in stds.items():
        if not math.isfinite(std):
            damaged[name] = "holds NaN or infinity"
        elif std < FLAT_STD:
            damaged[name] = f"flat (standard deviation {std * 255:.2f}/255)"
    return damaged
