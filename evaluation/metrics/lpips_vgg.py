"""LPIPS with VGG-16 against the reference of the same prompt: a second opinion beside AlexNet's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evaluation.metrics.lpips import lpips_scores
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric
from evaluation.similarity import similarity_metrics

SHOWN = (
    Shown(
        metric="lpips_vgg",
        title="LPIPS VGG",
        legend="VGG-16, to the reference's image; lower is better; [95 % interval]",
        digits=3,
        place=71,
    ),
)

FILE = "vgg16-397923af.pth"


@dataclass(kw_only=True)
class LpipsVgg(MetricBase):
    name = "lpips_vgg"
    needs = frozenset({Need.reference})
    higher_is_better = False
    columns = ("lpips_vgg",)
    weights = (FILE,)
    place = 31

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"lpips_vgg": lpips_scores(batch, inputs, net="vgg", file=FILE)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        return similarity_metrics(
            "lpips_vgg",
            torch.tensor(inputs.values("lpips_vgg"), dtype=torch.float64),
            higher_is_better=False,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
            note="VGG-16, full resolution",
        )


METRIC = LpipsVgg
