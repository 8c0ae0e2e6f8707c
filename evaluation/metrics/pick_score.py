"""PickScore v1: which image of a prompt users of a web page would pick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from evaluation.judges.clip_files import centre_square
from evaluation.judges.pick_network import load_pick_network, picks
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

SHOWN = (
    Shown(
        metric="pick_score",
        title="PickScore",
        legend="PickScore v1, mean over images; higher is better; [95 % interval over prompts]",
        place=48,
    ),
    Shown(
        metric="pick_score_delta",
        title="PickScore - fp",
        legend="the score less the unquantized model's, of the same prompts; "
        "[95 % interval, paired by prompt]",
        place=49,
    ),
)

FILE = "pickscore_v1.safetensors"


@dataclass(kw_only=True)
class PickScore(MetricBase):
    name = "pick_score"
    needs = frozenset({Need.reference, Need.prompts})
    higher_is_better = True
    against = "prompts"
    columns = ("pick_score", "pick_score_reference")
    weights = (FILE,)
    place = 44

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        key, judge = _judge(inputs)
        return {"pick_score": judged_images(inputs, batch, which="images", key=key, judge=judge)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        key, judge = _judge(inputs)
        return {"pick_score_reference": reference_scores(inputs, key=key, judge=judge)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        prompts = [inputs.text(name) for name in inputs.ids]
        tokenizer = _tokenizer(_network(inputs))
        length = tokenizer.context_length
        cut = sum(len(tokenizer.encode(prompt)) + 2 > length for prompt in prompts)
        return score_and_delta(
            inputs,
            name=self.name,
            column="pick_score",
            against=self.against,
            note=f"mean over images{cut_note(cut, of=len(prompts), tokens=length)}",
        )


METRIC = PickScore


def pick_scores(
    network: Any, images: torch.Tensor, prompts: Sequence[str], *, device: torch.device
) -> torch.Tensor:
    """The score of each image, float64 (N,).

    Args:
        images: uint8 (N, H, W, 3).
    """
    prepare = centre_square(network.config.vision_config.image_size)
    prepared = torch.stack([prepare(Image.fromarray(image.numpy())) for image in images])
    tokens = _tokenizer(network)(list(prompts))
    with asking():
        return picks(network, prepared, tokens, device=device)


def _tokenizer(network: Any) -> Any:
    import open_clip

    length = network.config.text_config.max_position_embeddings
    return open_clip.tokenizer.SimpleTokenizer(context_length=length)


def _judge(inputs: Inputs) -> tuple[str, Judge]:
    network = _network(inputs)
    key = f"pick_score\0{inputs.settings.files.identity(FILE)}"
    return key, lambda images, prompts: pick_scores(network, images, prompts, device=inputs.device)


def _network(inputs: Inputs) -> Any:
    return inputs.network(FILE, make=lambda: _load(inputs))


def _load(inputs: Inputs) -> Any:
    return load_pick_network(inputs.settings.files.need(FILE), device=inputs.device)
