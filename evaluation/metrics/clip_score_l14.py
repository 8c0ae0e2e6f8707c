"""CLIP score of OpenAI's ViT-L/14, which papers report, and the same of the reference's image."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from evaluation.clip_evaluator import Evaluator
from evaluation.judges.clip_files import load_clip_file
from evaluation.judges.read_weights import asking
from evaluation.metrics.clip_score import clip_note, clip_scores
from evaluation.metrics.kept_scores import Judge, judged_images, reference_scores, score_and_delta
from evaluation.metrics.metric_inputs import Batch, Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric

SHOWN = (
    Shown(
        metric="clip_score_l14",
        title="CLIP score ViT-L/14",
        legend="100 max(cosine(image, prompt), 0) by OpenAI's ViT-L/14, mean over images; higher "
        "is better; [95 % interval over prompts]",
        place=42,
    ),
    Shown(
        metric="clip_score_l14_delta",
        title="CLIP ViT-L/14 - fp",
        legend="the score less the unquantized model's, of the same prompts; "
        "[95 % interval, paired by prompt]",
        place=43,
    ),
)

FILE = "ViT-L-14.pt"


@dataclass(kw_only=True)
class ClipScoreL14(MetricBase):
    name = "clip_score_l14"
    needs = frozenset({Need.reference, Need.prompts})
    higher_is_better = True
    against = "prompts"
    columns = ("clip_l14", "clip_l14_reference")
    weights = (FILE,)
    place = 41

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        key, judge = _judge(inputs)
        return {"clip_l14": judged_images(inputs, batch, which="images", key=key, judge=judge)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        key, judge = _judge(inputs)
        return {"clip_l14_reference": reference_scores(inputs, key=key, judge=judge)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        note = clip_note(_tower(inputs), [inputs.text(name) for name in inputs.ids])
        return score_and_delta(
            inputs, name=self.name, column="clip_l14", against=self.against, note=note
        )


METRIC = ClipScoreL14


def _judge(inputs: Inputs) -> tuple[str, Judge]:
    tower = _tower(inputs)
    return f"clip\0{tower.key}", functools.partial(clip_scores, tower)


def _tower(inputs: Inputs) -> Evaluator:
    return inputs.network(FILE, make=lambda: _load(inputs))


def _load(inputs: Inputs) -> Evaluator:
    files = inputs.settings.files
    path = files.need(FILE)
    with asking():
        return load_clip_file(path, key=files.identity(FILE), quick_gelu=True, device=inputs.device)
