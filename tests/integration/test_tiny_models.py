"""The committed models: real pipelines, with cards, good enough for damage to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from evaluation.clip_evaluator import load_evaluator
from evaluation.datasets import shapes
from evaluation.datasets.interface import Prompt
from evaluation.metrics.clip_score import clip_scores
from experiments.config.compose import build, compose_config
from experiments.sampling.sample import sample
from experiments.tiny.evaluator import changed
from experiments.tiny.quality import COUNT, NAMES, RESULTS
from experiments.tiny.train import MODELS

CLASSES = {
    "tiny_mmdit": "StableDiffusion3Pipeline",
    "tiny_flux": "FluxPipeline",
    "tiny_unet": "StableDiffusionXLPipeline",
}


def _load(name: str) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(MODELS / name, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_loads_and_draws_its_prompts(name: str) -> None:
    pipeline = _load(name)
    assert type(pipeline).__name__ == CLASSES[name]
    config = build(compose_config([f"model={name}"]), method_name="").model
    taken = shapes.take("evaluation", 8, seed=5)
    prompts = [Prompt(id=s.id, text=s.prompt) for s in taken]
    images = np.asarray(sample(pipeline, prompts, config=config, seed=0))
    assert images.shape == (8, 64, 64, 3)
    pixels = torch.from_numpy((images * 255).round().astype(np.uint8))
    scores = clip_scores(load_evaluator(MODELS / "evaluator"), pixels, [p.text for p in prompts])
    assert float(scores.mean()) > 70


def test_the_denoisers_have_what_their_families_are_known_for() -> None:
    mmdit = _load("tiny_mmdit").transformer
    assert mmdit.transformer_blocks[0].attn2 is not None
    assert mmdit.transformer_blocks[-1].attn2 is None
    assert mmdit.transformer_blocks[-1].context_pre_only
    assert type(mmdit.transformer_blocks[0].attn.norm_q).__name__ == "RMSNorm"
    assert mmdit.transformer_blocks[0].norm1.linear.out_features == 9 * mmdit.inner_dim
    flux = _load("tiny_flux").transformer
    single = flux.single_transformer_blocks[0]
    assert single.proj_out.in_features == flux.inner_dim + single.mlp_hidden_dim
    assert flux.transformer_blocks
    unet = _load("tiny_unet").unet
    kinds = {type(module).__name__ for module in unet.modules()}
    assert {"GEGLU", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"} <= kinds


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_how_it_was_made(name: str) -> None:
    card = (MODELS / name / "README.md").read_text()
    for word in ("shapes", "steps", "seconds", "final loss", "samples.png", "experiments.tiny"):
        assert word in card
    assert (MODELS / name / "samples.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_the_measured_quality_is_enough(name: str) -> None:
    """What `python -m experiments.tiny.quality` wrote, against what was asked of the models."""
    results = json.loads((RESULTS / "tiny_quality.json").read_text())
    row = results[name]
    assert row["n"] == COUNT == 512
    assert row["clip_score_trained"] >= 0.9 * results["true_images"]["clip_score"]
    assert row["fid_shapes_dataset_trained"] <= row["fid_shapes_dataset_untrained"] / 5


def test_the_evaluator_sees_one_wrong_attribute() -> None:
    evaluator = load_evaluator(MODELS / "evaluator")
    taken = shapes.take("evaluation", 128, seed=3)
    rng = np.random.default_rng(0)

    def pictures(scenes: list[shapes.Scene]) -> torch.Tensor:
        drawn = [shapes.render(s, key=t.id) for s, t in zip(scenes, taken, strict=True)]
        return torch.from_numpy(np.stack(drawn))

    prompts = [t.prompt for t in taken]
    true = clip_scores(evaluator, pictures([t.scene for t in taken]), prompts)
    wrong = clip_scores(evaluator, pictures([changed(t.scene, rng) for t in taken]), prompts)
    assert float(true.mean()) > float(wrong.mean()) + 5
    assert float((true > wrong).float().mean()) > 0.75


def test_the_weights_are_where_the_size_limits_allow() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".png", ".gz"}
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    assert sum(path.stat().st_size for path in files) <= 48 * 2**20
    assert not list(Path(MODELS).rglob("*.bin"))
