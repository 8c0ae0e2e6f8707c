import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.clip import (
    Evaluator,
    clip_scores,
    count_truncated,
    load_evaluator,
)

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


def test_own_merges_reach_the_tokenizer(evaluator: Evaluator) -> None:
    # <start>, "red" and "blue" as one merged token each, <end>
    tokens = evaluator.tokenize(["red blue"])
    assert tokens.shape == (1, 8)
    assert (tokens[0, :4] > 512).all()
    assert (tokens[0, 4:] == 0).all()


def test_truncated_prompts_are_counted(evaluator: Evaluator) -> None:
    assert count_truncated(evaluator, ["red blue", "red " * 6, "red " * 7]) == 1


def test_standard_folder_without_merges(tmp_path: Path, make_open_clip_folder) -> None:
    loaded = load_evaluator(make_open_clip_folder(tmp_path / "clip", own_merges=False))
    assert clip_scores(loaded, some_images(), PROMPTS).shape == (3,)
    assert loaded.tokenize(["red"])[0, 0] == 49406


def test_loading_twice_gives_one_key_other_weights_another(
    tmp_path: Path, evaluator_folder: Path, evaluator: Evaluator, make_open_clip_folder
) -> None:
    assert load_evaluator(evaluator_folder).key == evaluator.key
    other = make_open_clip_folder(tmp_path / "clip", own_merges=True, seed=1)
    assert load_evaluator(other).key != evaluator.key


def test_never_random_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make_open_clip_folder
) -> None:
    folder = make_open_clip_folder(tmp_path / "clip", own_merges=True)
    weights = folder / "open_clip_model.safetensors"
    saved = weights.read_bytes()
    weights.unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="no weights"):
        load_evaluator(folder)
    weights.write_bytes(saved)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 24
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not fit"):
        load_evaluator(folder)


def test_folder_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no open_clip_config\.json"):
        load_evaluator(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="model_cfg"):
        load_evaluator(tmp_path)


def test_merges_must_fit_the_vocabulary(tmp_path: Path, make_open_clip_folder) -> None:
    import gzip

    folder = make_open_clip_folder(tmp_path / "clip", own_merges=True)
    (folder / "bpe_merges.txt.gz").write_bytes(gzip.compress(b"#version: 1\nr e"))
    with pytest.raises(ValueError, match="makes 515 tokens"):
        load_evaluator(folder)
