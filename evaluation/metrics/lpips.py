"""LPIPS with AlexNet against the reference of the same prompt, and how many images it calls bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from evaluation.judges.read_weights import asking, read_tensors
from evaluation.metrics.kept_scores import judged_pairs
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
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

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
LPIPS_MIN_SIDE = {"alex": 32, "vgg": 16}  # the pooling leaves nothing of smaller images
_NAMES = {"alex": "AlexNet", "vgg": "VGG-16"}
BAD_CASE_LPIPS = 0.5

Backbone = Literal["alex", "vgg"]


@dataclass(kw_only=True)
class Lpips(MetricBase):
    name = "lpips"
    needs = frozenset({Need.reference})
    higher_is_better = False
    columns = ("lpips",)
    weights = (LPIPS_BACKBONE,)
    place = 30

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"lpips": lpips_scores(batch, inputs, net="alex", file=LPIPS_BACKBONE)}

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


METRIC = Lpips


def lpips_scores(batch: Batch, inputs: Inputs, *, net: Backbone, file: str) -> torch.Tensor:
    """LPIPS of the batch's images with the backbone of `file`, kept, float64 (N,).

    Raises:
        MetricUnavailable: the file is not there, or the images are too small.
    """
    files = inputs.settings.files
    network = inputs.network(
        file, make=lambda: load_lpips(files.need(file), net=net).to(inputs.device)
    )
    return judged_pairs(
        inputs,
        batch,
        key=f"lpips\0{net}\0{files.identity(file)}",
        judge=lambda pairs: lpips_per_image(network, pairs.float_images, pairs.float_reference),
    )


def load_lpips(backbone: Path, *, net: Backbone) -> torch.nn.Module:
    """LPIPS with a torchvision backbone from a file; the linear heads are torchmetrics' own.

    Args:
        net: "alex" or "vgg".

    Raises:
        ValueError: the file does not fit.
    """
    from torchmetrics.functional.image import lpips as package

    with torch.device("meta"):  # neither fetched nor drawn at random: all is read
        network = package._NoTrainLpips(net=net, pretrained=False, pnet_rand=True)
    network.scaling_layer = package.ScalingLayer()
    heads = read_tensors(Path(package.__file__).with_name("lpips_models") / f"{net}.pth")
    tensors = read_tensors(backbone)
    for name in network.net.state_dict():  # slice2.3.weight is features.3.weight
        of_torchvision = f"features.{name.split('.', 1)[1]}"
        if of_torchvision not in tensors:
            raise ValueError(f"{backbone}: no backbone of LPIPS: it lacks {of_torchvision}")
        heads[f"net.{name}"] = tensors[of_torchvision]
    network.load_state_dict(heads, strict=False, assign=True)
    lacking = [name for name, value in network.state_dict().items() if value.is_meta]
    assert not lacking, lacking
    return network.float().eval().requires_grad_(False)


def lpips_per_image(
    network: torch.nn.Module, images: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """LPIPS distance for each image, float64 (N,), inputs mapped from [0, 1] to [-1, 1].

    Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1, version 0.1 of the linear heads.
    """
    check_pair(images, reference)
    kind = str(network.pnet_type)
    least = LPIPS_MIN_SIDE[kind]
    if min(images.shape[-2:]) < least:
        raise MetricUnavailable(
            f"LPIPS with {_NAMES[kind]} needs images of at least {least} pixels a side; "
            f"these are {images.shape[-1]}x{images.shape[-2]} and are not resized"
        )
    device = next(network.parameters()).device
    a, b = (pictures.to(device, torch.float32) for pictures in (images, reference))
    with asking():
        distances: torch.Tensor = network(a, b, normalize=True)
    return distances.reshape(-1).to(torch.float64).cpu()


def bad_case_rate(lpips_N: torch.Tensor) -> Metric:
    """Share of images with LPIPS above `BAD_CASE_LPIPS`: what a mean hides."""
    return share_metric(
        int((lpips_N > BAD_CASE_LPIPS).sum()),
        n=len(lpips_N),
        against="reference",
        note=f"share of images with LPIPS > {BAD_CASE_LPIPS}",
    )
