"""Features of images and texts from any open_clip checkpoint folder.

Shapes: N images, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from evaluation.feature_cache import file_hash
from evaluation.judges.read_weights import asking

CONFIG_NAME = "open_clip_config.json"
MERGES_NAME = "bpe_merges.txt.gz"
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
)
_BATCH = 64


@dataclass(kw_only=True)
class Evaluator:
    """A loaded open_clip model with its own preprocessing and tokenizer."""

    model: Any
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenize: Callable[[list[str]], torch.Tensor]
    image_size: tuple[int, int]  # height, width
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context_length: int
    device: torch.device
    key: str  # hash of weights, config and merges: names the evaluator in records and caches


def load_evaluator(folder: Path | str, *, device: str = "cpu") -> Evaluator:
    """Load an open_clip checkpoint folder; never a model with random weights.

    The folder holds `open_clip_config.json` and the weights, as open_clip saves them. With
    `bpe_merges.txt.gz` beside them the tokenizer is built from that file; otherwise it is
    the one that open_clip chooses for the config.

    Raises:
        ValueError: the folder, its config or its weights are missing or do not fit each other.
    """
    import open_clip

    folder = Path(folder)
    config = _read_config(folder)
    key = evaluator_key(folder)
    try:
        model = open_clip.create_model(
            f"local-dir:{folder}", device=device, precision="fp32", require_pretrained=True
        )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: config and weights do not fit: {error}") from error
    model.eval().requires_grad_(False)
    settings = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
    size = settings.size
    context_length = int(config["model_cfg"].get("text_cfg", {}).get("context_length", 77))
    return Evaluator(
        model=model,
        preprocess=open_clip.transform.image_transform_v2(settings, is_train=False),
        tokenize=_tokenizer(folder, config=config, context_length=context_length),
        image_size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])),
        mean=tuple(settings.mean),
        std=tuple(settings.std),
        context_length=context_length,
        device=torch.device(device),
        key=key,
    )


def evaluator_key(folder: Path | str, *, file_key: Callable[[Path], str] = file_hash) -> str:
    """What names the evaluator in a folder: the hash of its weights, config and merges.

    Args:
        file_key: gives a file's sha256.

    Raises:
        ValueError: it has no weights.
    """
    folder = Path(folder)
    weights = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise ValueError(
            f"{folder}: no weights; expected one of {', '.join(WEIGHT_NAMES)}. An evaluator with "
            "random weights would score noise"
        )
    digest = hashlib.sha256()
    for path in (folder / CONFIG_NAME, weights, folder / MERGES_NAME):
        if path.is_file():
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(file_key(path)))
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{folder}: no {CONFIG_NAME}; give a folder that open_clip can load")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or "model_cfg" not in config:
        raise ValueError(f"{path}: no 'model_cfg'; expected model_cfg and preprocess_cfg")
    return config


def _tokenizer(folder: Path, *, config: dict[str, Any], context_length: int) -> Any:
    import open_clip

    merges = folder / MERGES_NAME
    if not merges.is_file():
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        bpe_path=str(merges), context_length=context_length
    )
    expected = config["model_cfg"].get("text_cfg", {}).get("vocab_size")
    if expected is not None and tokenizer.vocab_size != expected:
        raise ValueError(
            f"{merges}: makes {tokenizer.vocab_size} tokens, {CONFIG_NAME} says {expected}; the "
            "end-of-text token would not be found"
        )
    return tokenizer


def normalize_batch(evaluator: Evaluator, images: torch.Tensor) -> torch.Tensor:
    """Float (N, 3, H, W) in [0, 1] to the tower's size (bicubic, antialias) and statistics."""
    if tuple(images.shape[-2:]) != evaluator.image_size:
        images = torch.nn.functional.interpolate(
            images, size=evaluator.image_size, mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
    mean = torch.tensor(evaluator.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(evaluator.std, device=images.device).view(1, 3, 1, 1)
    normalized: torch.Tensor = (images - mean) / std
    return normalized


def image_features(evaluator: Evaluator, images: torch.Tensor) -> torch.Tensor:
    """Unit-length float32 (N, D) features, through open_clip's own preprocessing.

    Args:
        images: uint8 (N, H, W, 3). Floats are refused: a [0, 1] image taken for [0, 255], or
            the other way round, gives a plausible and wrong score.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 (N, H, W, 3)"
        )
    parts = []
    with asking():
        for start in range(0, len(images), _BATCH):
            pictures = [Image.fromarray(image.numpy()) for image in images[start : start + _BATCH]]
            batch = torch.stack([evaluator.preprocess(picture) for picture in pictures])
            encoded = evaluator.model.encode_image(batch.to(evaluator.device), normalize=True)
            parts.append(encoded.float().cpu())
    return torch.cat(parts)


def text_features(evaluator: Evaluator, prompts: Sequence[str]) -> torch.Tensor:
    """Unit-length float32 (N, D) features; longer prompts are cut at the context length."""
    parts = []
    with asking():
        for start in range(0, len(prompts), _BATCH):
            tokens = evaluator.tokenize(list(prompts[start : start + _BATCH]))
            encoded = evaluator.model.encode_text(tokens.to(evaluator.device), normalize=True)
            parts.append(encoded.float().cpu())
    return torch.cat(parts)
