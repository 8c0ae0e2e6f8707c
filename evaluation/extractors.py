"""Feature extractors: a picture goes through one preprocessing and one network, and is kept.

A distance is an estimator (Frechet, kernel) times one of these, and carries its name. What a
picture gave is kept, some pictures at a time, under a name made of their contents, the weights, the
preprocessing, the packages and the kind of device: a run that was killed goes on; rows share it.

Shapes: N pictures, S pixels a side, D features.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from evaluation.clip_evaluator import Evaluator, normalize_batch
from evaluation.feature_cache import cached_array, judges_source
from evaluation.judges.clip_files import CLIP_MEAN, CLIP_STD, load_clip_file
from evaluation.judges.dinov2_tower import MEAN, SIDE, STD, class_tokens, load_dinov2
from evaluation.judges.read_weights import asking
from evaluation.records import MetricUnavailable
from evaluation.weight_files import Weights

Array = np.ndarray[Any, np.dtype[np.float64]]

INCEPTION, CLIP_336, DINOV2 = "inception", "clip336", "dinov2"
FILES = {
    INCEPTION: "inception-2015-12-05.pt",
    CLIP_336: "ViT-L-14-336px.pt",
    DINOV2: "dinov2_vitl14_pretrain.pth",
}
_CLEAN = "clean"  # clean-fid's: PIL, bicubic with antialias, to 299, channel by channel in float


Made = tuple[Callable[[Image.Image], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


class Picture(Protocol):
    """What is read of one."""

    @property
    def name(self) -> str: ...

    def read(self) -> Image.Image:
        """In RGB."""
        ...

    def sha256(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """`key` names all that a feature depends on beside the picture and the packages.

    `prepare` makes a float32 (3, S, S) of a picture; `encode` makes (N, D) of (N, 3, S, S).
    """

    key: str
    prepare: Callable[[Image.Image], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]


def picture_features(
    pictures: Sequence[Picture], *, extractor: Extractor, cache: Path | None = None, batch: int = 64
) -> Array:
    """Features of pictures of any format and size, row i for pictures[i], float64 (N, D).

    Args:
        batch: pictures at once; they are kept together, too.

    Raises:
        ValueError: a picture cannot be read, or its features are NaN or infinite.
    """
    rows = []
    for start in range(0, len(pictures), batch):
        some = pictures[start : start + batch]
        rows.append(
            cached_array(
                cache,
                kind="features",
                parts=itertools.chain([extractor.key], (picture.sha256() for picture in some)),
                compute=lambda some=some: _extract(some, extractor=extractor),  # type: ignore[misc]
            )
        )
    return np.concatenate(rows).astype(np.float64)


def _extract(pictures: Sequence[Picture], *, extractor: Extractor) -> np.ndarray[Any, Any]:
    batch_N3SS = torch.stack([extractor.prepare(picture.read()) for picture in pictures])
    with asking():
        features: np.ndarray[Any, Any] = extractor.encode(batch_N3SS).float().cpu().numpy()
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise ValueError(f"{pictures[wrong[0]].name}: the extractor gave NaN or infinite features")
    return features


def evaluator_extractor(evaluator: Evaluator) -> Extractor:
    """The evaluator's image tower, fed as Inception is: clean-fid's 299 pixels, then its size."""

    def encode(batch: torch.Tensor) -> torch.Tensor:
        images = normalize_batch(evaluator, batch.to(evaluator.device) / 255)
        features: torch.Tensor = evaluator.model.encode_image(images)  # not unit length, as usual
        return features

    return Extractor(
        key=_key(_CLEAN, evaluator.key, device=evaluator.device),
        prepare=clean_resize,
        encode=encode,
    )


def weighted_extractor(name: str, *, weights: Weights, device: torch.device) -> Extractor:
    """Inception as clean-fid uses it, CLIP ViT-L/14-336 or DINOv2 ViT-L/14, from the user's file.

    Raises:
        MetricUnavailable: the file is not there, or another one is; from what it returns, too,
            where the file does not fit.
    """
    path = weights.need(FILES[name])
    build = {INCEPTION: _inception, CLIP_336: _clip_336, DINOV2: _dinov2}[name]

    @functools.cache
    def network() -> Made:  # loaded for the first picture whose features are not kept
        try:
            return build(path, device)
        except (ValueError, KeyError) as error:
            raise MetricUnavailable(f"{path}: does not fit: {error}") from error

    return Extractor(
        key=_key(name, weights.identity(FILES[name]), device=device),
        prepare=lambda picture: network()[0](picture),
        encode=lambda batch: network()[1](batch),
    )


def _key(*parts: str, device: torch.device) -> str:
    return "\0".join((*parts, device.type, judges_source()))


def clean_resize(picture: Image.Image) -> torch.Tensor:
    """float32 (3, 299, 299) in [0, 255]: clean-fid's own function, as it reads PNG files."""
    from cleanfid.resize import build_resizer

    resized = build_resizer(_CLEAN)(np.asarray(picture))
    return torch.from_numpy(resized).permute(2, 0, 1)


def straight_resize(
    side: int, *, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], torch.Tensor]:
    """To side x side at once (PIL, bicubic with antialias): what is no square is squeezed."""

    def prepare(picture: Image.Image) -> torch.Tensor:
        resized = picture.resize((side, side), resample=Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    return prepare


def _inception(path: Path, device: torch.device) -> Made:
    from cleanfid.inception_torchscript import InceptionV3W

    network = InceptionV3W(str(path.parent), download=False).eval().to(device)

    def encode(batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network(batch.to(device))
        return features

    return clean_resize, encode


def _clip_336(path: Path, device: torch.device) -> Made:
    tower = load_clip_file(path, key="", quick_gelu=True, device=device)

    def encode(batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = tower.model.encode_image(batch.to(device), normalize=True)
        return features

    return straight_resize(tower.image_size[0], mean=CLIP_MEAN, std=CLIP_STD), encode


def _dinov2(path: Path, device: torch.device) -> Made:
    network = load_dinov2(path, device=device)
    return (
        straight_resize(SIDE, mean=MEAN, std=STD),
        lambda batch: class_tokens(network, batch.to(device)),
    )
