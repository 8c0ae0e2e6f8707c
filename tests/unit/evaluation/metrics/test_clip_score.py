import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.clip_evaluator import Evaluator
from evaluation.metrics.clip_score import clip_scores, count_truncated

PROMPTS = ["red circle", "blue square", "a big red ring"]


def some_images(count: int = 3, size: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def test_score_is_the_clipped_cosine_times_100(evaluator: Evaluator) -> None:
    """By hand: PIL bicubic, normalization, open_clip's towers, cosine."""
    images = some_images()
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        picture = Image.fromarray(image.numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = (np.asarray(picture, dtype=np.float32) / 255 - 0.5) / 0.25
        visual = evaluator.model.encode_image(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        text = evaluator.model.encode_text(evaluator.tokenize([prompt]))
        cosine = torch.nn.functional.cosine_similarity(visual, text).item()
        expected.append(100 * max(cosine, 0.0))
    scores = clip_scores(evaluator, images, PROMPTS)
    assert scores.tolist() == pytest.approx(expected, abs=1e-3)
    assert len(set(scores.tolist())) > 1


class OppositeModel:
    """Says that the first image is the opposite of its prompt and the second the prompt itself."""

    def encode_image(self, batch: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.tensor([[-1.0, 0.0], [1.0, 0.0]])[: len(batch)]

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(tokens), 2)


def test_each_image_is_clipped_at_zero_not_their_mean(evaluator: Evaluator) -> None:
    stub = dataclasses.replace(evaluator, model=OppositeModel())
    assert clip_scores(stub, some_images(2), PROMPTS[:2]).tolist() == [0.0, 100.0]


def test_image_scale_is_checked(evaluator: Evaluator) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        clip_scores(evaluator, some_images().float(), PROMPTS)
    with pytest.raises(ValueError, match="one prompt each"):
        clip_scores(evaluator, some_images(), PROMPTS[:2])


def test_truncated_prompts_are_counted(evaluator: Evaluator) -> None:
    assert count_truncated(evaluator, ["red blue", "red " * 6, "red " * 7]) == 1
