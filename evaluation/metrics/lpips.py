"""LPIPS with AlexNet against the reference of the same prompt, and how many images it calls bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.metrics.metric_inputs import Batch, Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.outside_files import OutsideFile
from evaluation.records import Metric, MetricUnavailable
from evaluation.similarity import check_pair, similarity_metrics
from evaluation.statistics import share_metric

SHOWN = (
    Shown(
        metric="lpips",
        title="LPIPS",
        legend="AlexNet, to the reference's image; lower is better; [95 % interval]",
        digits=3,
        place=70,
    ),
)

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"  # the name under which torchvision stores it
LPIPS_MIN_SIDE = 32  # AlexNet's pooling leaves nothing of smaller images
BAD_CASE_LPIPS = 0.5
_BATCH = 64


@dataclass(kw_only=True)
class Lpips(MetricBase):
    name = "lpips"
    needs = frozenset({Need.reference})
    higher_is_better = False
    columns = ("lpips",)
    place = 30

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        if not inputs.settings.lpips:
            raise MetricUnavailable("LPIPS is switched off")
        network = inputs.once("lpips", make=load_lpips)
        return {"lpips": lpips_per_image(network, batch.float_images, batch.float_reference)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        seed, resamples = inputs.settings.seed, inputs.settings.resamples
        lpips_N = torch.tensor(inputs.values("lpips"), dtype=torch.float64)
        metrics = similarity_metrics(
            "lpips",
            lpips_N,
            higher_is_better=False,
            seed=seed,
            resamples=resamples,
            note="AlexNet, full resolution",
        )
        metrics["bad_case_rate"] = bad_case_rate(lpips_N)
        return metrics

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        """With the weights, or that they are missing: once they are there, it is measured again."""
        path = backbone_path()
        weights = settings.file_key(path) if path.is_file() else "missing"
        return super().identity(settings) | {"weights": weights if settings.lpips else "off"}

    def outside_files(self, settings: MetricSettings) -> Sequence[OutsideFile]:
        if not settings.lpips:
            return ()
        from torchvision.models import AlexNet_Weights

        path = backbone_path()
        return [
            OutsideFile(
                path=path,
                needed_by="LPIPS",
                origin=AlexNet_Weights.IMAGENET1K_V1.url,
                size=None,
                sha256=f"{path.stem.rpartition('-')[2]}...",  # torchvision's names hold it
            )
        ]


METRIC = Lpips


def backbone_path() -> Path:
    """Where torchvision looks for AlexNet."""
    return Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE


def load_lpips() -> torch.nn.Module:
    """LPIPS with AlexNet, from weights that already lie on this machine.

    Raises:
        MetricUnavailable: torchvision's AlexNet is not in torch's hub folder. No download is tried.
    """
    checkpoint = backbone_path()
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
    check_pair(images, reference)
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


def bad_case_rate(lpips_N: torch.Tensor) -> Metric:
    """Share of images with LPIPS above `BAD_CASE_LPIPS`: what a mean hides."""
    return share_metric(
        int((lpips_N > BAD_CASE_LPIPS).sum()),
        n=len(lpips_N),
        against="reference",
        note=f"share of images with LPIPS > {BAD_CASE_LPIPS}",
    )
