"""The tiny evaluator: an open_clip model of our own config, trained on `shapes`.

It shares no weights with the pipelines it judges. Each image of a batch is told from the captions
of all others and from one hard negative of its own, a caption with one attribute changed, so that
the score falls when a colour, a shape, a size or a place is wrong. A readout of the layout from
the image embedding (thrown away afterwards) keeps what the Frechet distance looks at informative.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import nn

from evaluation.datasets.shapes import BACKGROUNDS, CELLS, COLOURS, SHAPES, SIZES, Sample, Scene
from experiments.tiny.text import MAX_TOKENS, _Readout, layouts, merges
from experiments.tiny.training import TrainingLog, train
from experiments.tiny.vae import images_of

_EMBED = 64


def write_merges(path: Path) -> None:
    """The merges in open_clip's format: a header line, then one pair a line, gzipped (no time)."""
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges())]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def model_config(vocab_size: int) -> dict[str, Any]:
    return {
        "embed_dim": _EMBED,
        "vision_cfg": {
            "image_size": 64,
            "layers": 3,
            "width": 128,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 4,
            "layers": 3,
        },
    }


def changed(scene: Scene, generator: np.random.Generator) -> Scene:
    """The scene with one attribute of one object, or the background, changed."""
    objects = list(scene.objects)
    index = int(generator.integers(len(objects)))
    kind = int(generator.integers(5))
    item = objects[index]
    if kind == 0:
        return replace(scene, background=_other(scene.background, len(BACKGROUNDS), generator))
    if kind == 1:
        item = replace(item, colour=_other(item.colour, len(COLOURS), generator))
    elif kind == 2:
        item = replace(item, shape=_other(item.shape, len(SHAPES), generator))
    elif kind == 3:
        item = replace(item, size=_other(item.size, len(SIZES), generator))
    else:
        item = replace(item, cell=_other(item.cell, len(CELLS), generator))
    objects[index] = item
    return replace(scene, objects=tuple(objects))


def _other(value: int, count: int, generator: np.random.Generator) -> int:
    return (value + 1 + int(generator.integers(count - 1))) % count


class _EvaluatorTask(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip
        self.readout = _Readout(_EMBED, pooled=True)


def train_evaluator(
    samples: list[Sample], *, steps: int, batch_size: int, seed: int, work: Path
) -> tuple[nn.Module, TrainingLog]:
    work.mkdir(parents=True, exist_ok=True)
    write_merges(work / "bpe_merges.txt.gz")
    tokenizer = SimpleTokenizer(str(work / "bpe_merges.txt.gz"), context_length=MAX_TOKENS)
    torch.manual_seed(seed)
    task = _EvaluatorTask(open_clip.CLIP(**model_config(tokenizer.vocab_size)))
    images = images_of(samples).mul(127.5).round().to(torch.int8)
    layout = layouts(samples)
    ids = tokenizer([sample.prompt for sample in samples])

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(samples), (batch_size,), generator=generator)
        rng = np.random.default_rng([seed, step])
        wrong = tokenizer([changed(samples[int(row)].scene, rng).caption for row in rows])
        pixels = images[rows].float() / 127.5
        image = task.clip.encode_image(pixels)  # type: ignore[operator]
        text = task.clip.encode_text(torch.cat([ids[rows], wrong]))  # type: ignore[operator]
        scale = task.clip.logit_scale.exp().clamp(max=100.0)  # type: ignore[operator]
        logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        target = torch.arange(batch_size)
        total = F.cross_entropy(logits, target)
        total = total + F.cross_entropy(logits[:, :batch_size].T, target)
        value = total + 0.5 * task.readout(image, layout[rows])
        assert isinstance(value, torch.Tensor)
        return value

    record = train(
        task,
        loss=loss,
        name="evaluator",
        steps=steps,
        batch_size=batch_size,
        learning_rate=1.5e-3,
        seed=seed,
        work=work,
        decay=0.995,
    )
    return task.clip, record


def save_evaluator(clip: nn.Module, folder: Path) -> None:
    """Writes open_clip's own layout: config, weights (float16), and our merges."""
    folder.mkdir(parents=True, exist_ok=True)
    write_merges(folder / "bpe_merges.txt.gz")
    vocab_size = SimpleTokenizer(str(folder / "bpe_merges.txt.gz"), context_length=4).vocab_size
    config = {
        "model_cfg": model_config(vocab_size),
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [64, 64]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {key: value.half().contiguous() for key, value in clip.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
