"""HPS v2.1: what people prefer, by a ViT-H/14 that was trained on their choices."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from evaluation.clip_evaluator import Evaluator, image_features, text_features
from evaluation.judges.clip_files import load_clip_file
from evaluation.metrics.clip_score import count_truncated
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
        metric="hps",
        title="HPS v2.1 x100",
        legend="cosine of image and prompt by HPS v2.1, mean over images, times 100; higher is "
        "better; [95 % interval over prompts]",
        scale=100,
        place=46,
    ),
    Shown(
        metric="hps_delta",
        title="HPS x100 - fp",
        legend="the score less the unquantized model's, of the same prompts; "
        "[95 % interval, paired by prompt]",
        scale=100,
        place=47,
    ),
)

FILE = "HPS_v2.1_compressed.pt"
_HEAD_WIDTH = 80  # of ViT-H/14's image tower


@dataclass(kw_only=True)
class Hps(MetricBase):
    name = "hps"
    needs = frozenset({Need.reference, Need.prompts})
    higher_is_better = True
    against = "prompts"
    columns = ("hps", "hps_reference")
    weights = (FILE,)
    place = 43

    def score(self, batch: Batch, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        key, judge = _judge(inputs)
        return {"hps": judged_images(inputs, batch, which="images", key=key, judge=judge)}

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        key, judge = _judge(inputs)
        return {"hps_reference": reference_scores(inputs, key=key, judge=judge)}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        tower, prompts = _tower(inputs), [inputs.text(name) for name in inputs.ids]
        cut = count_truncated(tower, prompts)
        said = cut_note(cut, of=len(prompts), tokens=tower.context_length)
        return score_and_delta(
            inputs,
            name=self.name,
            column="hps",
            against=self.against,
            note=f"cosine, mean over images{said}",
        )


METRIC = Hps


def preference_scores(
    tower: Evaluator, images: torch.Tensor, prompts: Sequence[str]
) -> torch.Tensor:
    """The cosine of each image and its prompt, float64 (N,).

    Source: Wu et al. 2023 (arXiv:2306.09341), section 4.
    """
    seen = image_features(tower, images).to(torch.float64)
    return (seen * text_features(tower, prompts).to(torch.float64)).sum(dim=1)


def _judge(inputs: Inputs) -> tuple[str, Judge]:
    tower = _tower(inputs)
    return f"hps\0{tower.key}", functools.partial(preference_scores, tower)


def _tower(inputs: Inputs) -> Evaluator:
    return inputs.network(FILE, make=lambda: _load(inputs))


def _load(inputs: Inputs) -> Evaluator:
    files = inputs.settings.files
    return load_clip_file(
        files.need(FILE),
        key=files.identity(FILE),
        quick_gelu=False,
        vision_head_width=_HEAD_WIDTH,
        whole_picture=True,
        device=inputs.device,
    )
