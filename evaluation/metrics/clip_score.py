"""CLIP score: how well each image fits its prompt, and the same of the reference's image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.clip_evaluator import Evaluator, evaluator_key, image_features, text_features
from evaluation.feature_cache import cached_array, folder_contents
from evaluation.metrics.metric_inputs import Batch, Inputs, MetricSettings
from evaluation.metrics.metric_interface import DELTA, MetricBase, Need, Shown
from evaluation.records import Metric
from evaluation.statistics import metric_from_estimate, metric_from_values, paired_difference

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
_DELTA = f"clip_score{DELTA}"


@dataclass(kw_only=True)
class ClipScore(MetricBase):
    name = "clip_score"
    needs = frozenset({Need.reference, Need.prompts, Need.evaluator})
    higher_is_better = True
    against = "prompts"
    columns = ("clip", "clip_reference")
    place = 40

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        return {"clip": clip_scores(inputs.evaluator, batch.images, batch.prompts)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        """The reference's: kept on disk, since they serve all methods."""
        prompts = [inputs.text(name) for name in inputs.ids]
        contents = folder_contents(inputs.reference, ids=inputs.ids)
        scores_N = cached_array(
            inputs.settings.cache,
            kind="clip",
            parts=[inputs.evaluator.key, *prompts, *contents],
            compute=lambda: torch.cat(
                [
                    clip_scores(inputs.evaluator, batch.reference, batch.prompts)
                    for batch in inputs.batches()
                ]
            ).numpy(),
        )
        return {"clip_reference": dict(zip(inputs.ids, scores_N.tolist(), strict=True))}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        seed, resamples = inputs.settings.seed, inputs.settings.resamples
        prompts = [inputs.text(name) for name in inputs.ids]
        note = "100 max(cos, 0), mean over images"
        truncated = count_truncated(inputs.evaluator, prompts)
        if truncated:
            length = inputs.evaluator.context_length
            note += f"; {truncated} of {len(prompts)} prompts cut at {length} tokens"
        score = metric_from_values(
            inputs.values("clip"),
            higher_is_better=True,
            against=self.against,
            seed=seed,
            resamples=resamples,
            note=note,
        )
        difference = paired_difference(
            inputs.values("clip"), inputs.values("clip_reference"), seed=seed, resamples=resamples
        )
        pairs = zip(inputs.values("clip"), inputs.values("clip_reference"), strict=True)
        deltas = (mine - reference for mine, reference in pairs)
        inputs.scores[_DELTA] = dict(zip(inputs.ids, deltas, strict=True))
        delta = metric_from_estimate(
            difference,
            higher_is_better=True,
            against="clip_score of the reference",
            note=f"paired by prompt; two-sided p={difference.p_value:.3g}; median "
            f"{difference.median:.3g}, sign test p={difference.sign_p_value:.3g}",
            unit="",
        )
        return {"clip_score": score, _DELTA: delta}

    def identity(self, settings: MetricSettings) -> dict[str, Any]:
        key = evaluator_key(settings.evaluator, file_key=settings.file_key)
        return super().identity(settings) | {"evaluator": key}


METRIC = ClipScore


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
