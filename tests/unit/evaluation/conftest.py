"""A tiny open_clip folder with random, saved weights, and small folders of images."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.clip_evaluator import Evaluator, load_evaluator
from evaluation.images import write_png
from evaluation.weight_files import WeightFile
from tests.stand_ins import write_stand_ins

MERGES = ["r e", "re d</w>", "b l", "bl u", "blu e</w>"]
CONTEXT_LENGTH = 8
IMAGE_SIZE = 32


def save_open_clip_folder(folder: Path, *, own_merges: bool, seed: int = 0) -> Path:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    vocab_size = 2 * 256 + len(MERGES) + 2 if own_merges else 49408
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": IMAGE_SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, "width": 32, "heads": 2,
            "layers": 1,
        },
    }  # fmt: skip
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "size": IMAGE_SIZE}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if own_merges:
        text = "\n".join(["#version: 1", *MERGES])
        (folder / "bpe_merges.txt.gz").write_bytes(gzip.compress(text.encode()))
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**json.loads(json.dumps(model_cfg)))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_open_clip_folder() -> Callable[..., Path]:
    return save_open_clip_folder


@pytest.fixture(scope="session")
def evaluator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip_folder(tmp_path_factory.mktemp("clip") / "own", own_merges=True)


@pytest.fixture(scope="session")
def evaluator(evaluator_folder: Path) -> Evaluator:
    return load_evaluator(evaluator_folder)


@pytest.fixture(scope="session")
def all_stand_ins(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, WeightFile]]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, write_stand_ins(folder)


@pytest.fixture
def weights(
    all_stand_ins: tuple[Path, dict[str, WeightFile]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with stand-ins for all files of weights, which count as the publishers'."""
    folder, table = all_stand_ins
    monkeypatch.setattr("evaluation.weight_files.weight_files", lambda: table)
    return folder


ImageFolder = Callable[..., Path]


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Make a folder of seeded images: smooth scenes, so that noise on top of them is small."""

    def make(
        name: str, *, ids: list[str], seed: int = 0, noise: float = 0.0, size: int = 32
    ) -> Path:
        scenes = np.random.default_rng(seed)
        grain = np.random.default_rng(seed + 1000)
        for image_id in ids:
            coarse = scenes.uniform(0, 255, size=(4, 4, 3))
            picture: Any = np.kron(coarse, np.ones((size // 4, size // 4, 1)))
            picture = picture + noise * grain.standard_normal(picture.shape)
            write_png(tmp_path / name / f"{image_id}.png", picture.clip(0, 255).astype(np.uint8))
        return tmp_path / name

    return make
