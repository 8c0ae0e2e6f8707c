import json
import logging
from pathlib import Path

import pytest
import torch

from evaluation.clip_evaluator import Evaluator, evaluator_key, load_evaluator
from evaluation.feature_cache import file_hash
from evaluation.metrics.clip_score import clip_scores


def test_own_merges_reach_the_tokenizer(evaluator: Evaluator) -> None:
    # <start>, "red" and "blue" as one merged token each, <end>
    tokens = evaluator.tokenize(["red blue"])
    assert tokens.shape == (1, 8)
    assert (tokens[0, :4] > 512).all()
    assert (tokens[0, 4:] == 0).all()


def test_standard_folder_without_merges(tmp_path: Path, make_open_clip_folder) -> None:
    loaded = load_evaluator(make_open_clip_folder(tmp_path / "clip", own_merges=False))
    images = torch.zeros((3, 48, 48, 3), dtype=torch.uint8)
    assert clip_scores(loaded, images, ["red circle", "blue square", "ring"]).shape == (3,)
    assert loaded.tokenize(["red"])[0, 0] == 49406


def test_loading_twice_gives_one_key_other_weights_another(
    tmp_path: Path, evaluator_folder: Path, evaluator: Evaluator, make_open_clip_folder
) -> None:
    assert load_evaluator(evaluator_folder).key == evaluator.key
    other = make_open_clip_folder(tmp_path / "clip", own_merges=True, seed=1)
    assert load_evaluator(other).key != evaluator.key


def test_a_caller_may_know_the_files_already(evaluator_folder: Path, evaluator: Evaluator) -> None:
    asked = []

    def file_key(path: Path) -> str:
        asked.append(path.name)
        return file_hash(path)

    assert evaluator_key(evaluator_folder, file_key=file_key) == evaluator.key
    assert len(asked) == 3


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
