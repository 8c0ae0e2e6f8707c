"""ImageReward v1.0: how much people like an image of this prompt; how many much less than fp's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.judges.blip_reward import (
    PROMPT_TOKENS,
    BlipReward,
    count_cut,
    load_blip_reward,
    rewards,
)
from evaluation.judges.clip_files import centre_square
from evaluation.judges.read_weights import asking
from evaluation.metrics.kept_scores import (
    Judge,
    cut_note,
    judged_images,
    reference_scores,
    score_and_delta,
)
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric
from evaluation.statistics import share_metric

SHOWN = (
    Shown(
        metric="image_reward",
        title="ImageReward",
        legend="ImageReward v1.0, mean over images (one image's deviation is about 1); higher is "
        "better; [95 % interval over prompts]",
        place=44,
    ),
    Shown(
        metric="image_reward_delta",
        title="ImageReward - fp",
        legend="the reward less the unquantized model's, of the same prompts; "
        "[95 % interval, paired by prompt]",
        place=45,
    ),
)

FILE, VOCABULARY = "ImageReward.pt", "bert-base-uncased-vocab.txt"
BAD_CASE_DROP = 1.0


@dataclass(kw_only=True)
class ImageReward(MetricBase):
    name = "image_reward"
    needs = frozenset({Need.reference, Need.prompts})
    higher_is_better = True
    against = "prompts"
    columns = ("image_reward", "image_reward_reference")
    weights = (FILE, VOCABULARY)
    place = 42

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        key, judge = _judge(inputs)
        return {"image_reward": judged_images(inputs, batch, which="images", key=key, judge=judge)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        key, judge = _judge(inputs)
        return {"image_reward_reference": reference_scores(inputs, key=key, judge=judge)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        prompts = [inputs.text(name) for name in inputs.ids]
        said = cut_note(count_cut(_network(inputs), prompts), of=len(prompts), tokens=PROMPT_TOKENS)
        metrics = score_and_delta(
            inputs,
            name=self.name,
            column="image_reward",
            against=self.against,
            note=f"mean over images{said}",
        )
        drops = np.subtract(inputs.values("image_reward_reference"), inputs.values("image_reward"))
        metrics["image_reward_bad_case_rate"] = share_metric(
            int((drops > BAD_CASE_DROP).sum()),
            n=len(drops),
            against="image_reward of the reference",
            note=f"share of images whose reward is lower by more than {BAD_CASE_DROP:.0f}",
        )
        return metrics


METRIC = ImageReward


def image_rewards(
    network: BlipReward, images: torch.Tensor, prompts: Sequence[str]
) -> torch.Tensor:
    """The reward of each image, float64 (N,).

    Args:
        images: uint8 (N, H, W, 3).
    """
    prepare = centre_square(network.image_size)
    prepared = torch.stack([prepare(Image.fromarray(image.numpy())) for image in images])
    with asking():
        return rewards(network, prepared, prompts)


def _judge(inputs: Inputs) -> tuple[str, Judge]:
    network, files = _network(inputs), inputs.settings.files
    key = "\0".join(("image_reward", files.identity(FILE), files.identity(VOCABULARY)))
    return key, lambda images, prompts: image_rewards(network, images, prompts)


def _network(inputs: Inputs) -> BlipReward:
    return inputs.network(FILE, make=lambda: _load(inputs))


def _load(inputs: Inputs) -> BlipReward:
    path, vocabulary = _files(inputs)
    return load_blip_reward(path, vocabulary=vocabulary, device=inputs.device)


def _files(inputs: Inputs) -> tuple[Path, Path]:
    return inputs.settings.files.need(FILE), inputs.settings.files.need(VOCABULARY)
