"""CLIP score: how well each image fits its prompt, and the same of the reference's image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.clip_evaluator import Evaluator, evaluator_key, image_features, text_features
from evaluation.metrics.kept_scores import (
    Judge,
    cut_note,
    judged_images,
    reference_scores,
    score_and_delta,
)
from evaluation.metrics.metric_inputs import Batch, Inputs, MetricSettings
from evaluation.metrics.metric_interface import MetricBase, Need, Shown, networks_identity
from evaluation.records import Metric

SHOWN = (
    Shown(
        metric="clip_score",
        title="CLIP score",
        legend="100 max(cosine(image, prompt), 0), mean over images; higher is better; "
        "[95 % interval over prompts]",
        place=40,
    ),
    Shown(
        metric="clip_score_delta",
        title="CLIP - fp",
        legend="the score less the unquantized model's, of the same prompts; "
        "[95 % interval, paired by prompt]",
        place=41,
    ),
)

SCORE_SCALE = 100.0


@dataclass(kw_only=True)
class ClipScore(MetricBase):
    name = "clip_score"
    needs = frozenset({Need.reference, Need.prompts, Need.evaluator})
    higher_is_better = True
    against = "prompts"
    columns = ("clip", "clip_reference")
    place = 40

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        key, judge = _judge(inputs.evaluator)
        return {"clip": judged_images(inputs, batch, which="images", key=key, judge=judge)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        key, judge = _judge(inputs.evaluator)
        return {"clip_reference": reference_scores(inputs, key=key, judge=judge)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        note = clip_note(inputs.evaluator, [inputs.text(name) for name in inputs.ids])
        return score_and_delta(
            inputs, name=self.name, column="clip", against=self.against, note=note
        )

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        key = "none"
        if settings.evaluator is not None:
            key = evaluator_key(settings.evaluator, file_key=settings.file_key)
        own = super().identity(settings) | networks_identity(settings, weights=())
        return own | {"evaluator": key}


METRIC = ClipScore


def _judge(evaluator: Evaluator) -> tuple[str, Judge]:
    return f"clip\0{evaluator.key}", functools.partial(clip_scores, evaluator)


def clip_note(evaluator: Evaluator, prompts: Sequence[str]) -> str:
    """What a CLIP score is, and how many prompts it read in part."""
    cut = count_truncated(evaluator, prompts)
    said = cut_note(cut, of=len(prompts), tokens=evaluator.context_length)
    return f"100 max(cos, 0), mean over images{said}"


def clip_scores(evaluator: Evaluator, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """100 max(cos(image, prompt), 0) for each image, float64 (N,), clipped image by image.

    Source: Hessel et al. 2021 (arXiv:2104.08718), eq. 1, with w = 100 instead of 2.5.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts; give one prompt each")
    image = image_features(evaluator, images).to(torch.float64)
    text = text_features(evaluator, prompts).to(torch.float64)
    return SCORE_SCALE * (image * text).sum(dim=1).clamp(min=0)


def count_truncated(evaluator: Evaluator, prompts: Sequence[str]) -> int | None:
    """How many prompts exceed the context length; None when the tokenizer does not tell."""
    encode = getattr(evaluator.tokenize, "encode", None)
    if encode is None:
        return None
    return sum(len(encode(prompt)) + 2 > evaluator.context_length for prompt in prompts)
