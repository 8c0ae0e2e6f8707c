"""Frechet and kernel distances between two sets of images.

Images are read and resized by clean-fid's own code (`mode="clean"`: PIL bicubic with antialias to
299x299). The features come from an extractor that the caller names; metric names carry that name,
since distances from different extractors or resizers cannot be compared.

Shapes: N images of one set, M of the other, D features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.clip_evaluator import Evaluator, normalize_batch
from evaluation.feature_cache import file_hash
from evaluation.images import check_ids
from evaluation.records import Metric, MetricUnavailable

Array = np.ndarray[Any, np.dtype[np.float64]]
Extractor = Callable[[torch.Tensor], torch.Tensor]

INCEPTION_NAME = "inception-2015-12-05.pt"
KID_SUBSETS = 100
KID_MAX_SUBSET_SIZE = 1000
SPREAD_RESAMPLES = 200
SPREAD_KIND = "sd"
_BATCH = 32
_MODE = "clean"


def evaluator_extractor(evaluator: Evaluator) -> Extractor:
    """The evaluator's image tower as clean-fid wants it: float [0, 255] (N, 3, 299, 299) in."""

    def extract(batch: torch.Tensor) -> torch.Tensor:
        images = normalize_batch(evaluator, batch.to(evaluator.device) / 255)
        features: torch.Tensor = evaluator.model.encode_image(images)  # not unit length, as usual
        return features.float()

    return extract


def inception_extractor(
    folder: Path | str,
    *,
    sha256: str | None = None,
    file_key: Callable[[Path], str] = file_hash,
) -> Extractor:
    """The Inception network of StyleGAN2-ADA, as clean-fid uses it, from a folder on disk.

    Args:
        sha256: what the file must have; None for any.
        file_key: gives a file's sha256.

    Raises:
        MetricUnavailable: the file is not there; no download is tried.
        ValueError: the file's sha256 is not the configured one.
    """
    path = Path(folder) / INCEPTION_NAME
    if not path.is_file():
        raise MetricUnavailable(f"the Inception features need {path}; put the file there")
    if sha256 is not None:
        present = file_key(path)
        if present != sha256.lower():
            raise ValueError(
                f"{path}: sha256 is {present}, expected {sha256}; fetch the file again"
            )
    from cleanfid.inception_torchscript import InceptionV3W

    network = InceptionV3W(str(folder), download=False).eval()

    def extract(batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = network(batch)
        return features

    return extract


def folder_features(folder: Path | str, *, ids: Sequence[str], extractor: Extractor) -> Array:
    """Features of the images of `ids`, row i for ids[i], float64 (N, D).

    clean-fid reads the list of files in the order given; the folder must hold these and no others.
    """
    from cleanfid import fid

    check_ids(folder, ids)
    files = [str(Path(folder) / f"{name}.png") for name in ids]
    features = fid.get_files_features(
        files,
        extractor,
        num_workers=0,
        batch_size=_BATCH,
        device=torch.device("cpu"),
        mode=_MODE,
        verbose=False,
    )
    array: Array = np.asarray(features, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{folder}: the extractor gave NaN or infinite features")
    return array


def frechet_distance(a_ND: Array, b_MD: Array) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features; 0 or more.

    With centred A/sqrt(N-1) and B/sqrt(M-1), Tr sqrt(Ca Cb) is the sum of the singular values of
    A B^T: exact, without a square root of a singular matrix. QR keeps it D x D when N exceeds D.

    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6.
    """
    _check_features(a_ND, b_MD)
    if np.array_equal(a_ND, b_MD):
        return 0.0
    root_a, root_b = _covariance_root(a_ND), _covariance_root(b_MD)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    shift = a_ND.mean(axis=0) - b_MD.mean(axis=0)
    distance = shift @ shift + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return max(0.0, float(distance))


def frechet_distance_gaussians(
    mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array
) -> float:
    """Frechet distance of two Gaussians given by their moments; 0 or more.

    Source: Dowson and Landau 1982; Tr sqrt(Ca Cb) = Tr sqrt(Ca^1/2 Cb Ca^1/2).
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ covariance_b @ root)
    shift = mean_a - mean_b
    cross = np.sqrt(middle.clip(min=0)).sum()
    distance = shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(
    a_ND: Array,
    b_MD: Array,
    *,
    seed: int,
    paired: bool = False,
    subsets: int = KID_SUBSETS,
    max_subset_size: int = KID_MAX_SUBSET_SIZE,
) -> float:
    """Kernel distance with k(x, y) = (x.y / D + 1)^3, seeded.

    The estimator is unbiased, so near 0 it may be negative. Two sets that share nothing are
    measured as clean-fid does, with its subsets after `numpy.random.seed(seed)`. Images of the
    same prompts are alike whatever the model: a term of the two would pull the distance below 0,
    the further the fewer images there are, so that `paired` leaves these terms out.

    Args:
        paired: row i of both sets is of one prompt.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 4; paired: Gretton et al. 2012 (JMLR 13),
    eq. 4, where no sum has a term with i = j.
    """
    _check_features(a_ND, b_MD)
    assert not paired or len(a_ND) == len(b_MD)
    size = min(len(a_ND), len(b_MD), max_subset_size)
    if size == len(a_ND) == len(b_MD):  # every subset is the whole: one is enough
        return _squared_mmd(a_ND, b_MD, paired=paired)
    generator = np.random.RandomState(seed)
    total = 0.0
    for _ in range(subsets):
        rows_b = generator.choice(len(b_MD), size, replace=False)
        rows_a = rows_b if paired else generator.choice(len(a_ND), size, replace=False)
        total += _squared_mmd(a_ND[rows_a], b_MD[rows_b], paired=paired)
    return total / subsets


def spread(
    distance: Callable[[Array, Array], float],
    a_ND: Array,
    b_MD: Array,
    *,
    seed: int,
    paired: bool,
    resamples: int = SPREAD_RESAMPLES,
) -> float:
    """Standard deviation of a distance over random halves of both sets.

    Halves are drawn without replacement: the variance of a mean over a half, given the data, is
    that of the mean over the whole (a distance is no mean: it is taken as one for its spread
    alone), and no image meets its own copy. `paired` takes the same rows of both sets: where these
    are of the same prompts, halves of different ones would be much further apart than the whole.
    """
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        rows_a = generator.permutation(len(a_ND))[: max(2, len(a_ND) // 2)]
        rows_b = rows_a if paired else generator.permutation(len(b_MD))[: max(2, len(b_MD) // 2)]
        values.append(distance(a_ND[rows_a], b_MD[rows_b]))
    return float(np.std(values, ddof=1))


def distance_metric(
    distance: Callable[[Array, Array], float],
    a_ND: Array,
    b_MD: Array,
    *,
    against: str,
    paired: bool,
    note: str,
    seed: int,
    resamples: int,
) -> Metric:
    """A distance with its spread as sd, where there are resamples and 4 images or more.

    Args:
        against: "dataset" or "reference".
        paired: row i of both sets is of one prompt.
    """
    if against not in ("dataset", "reference"):
        raise ValueError(f"against={against!r}; allowed are 'dataset' and 'reference'")
    value = distance(a_ND, b_MD)
    sd = None
    if resamples > 1 and min(len(a_ND), len(b_MD)) >= 4:
        sd = spread(distance, a_ND, b_MD, seed=seed, paired=paired, resamples=resamples)
    return Metric(
        value=value,
        higher_is_better=False,
        n=len(a_ND),
        against=against,
        standard_error=sd,
        interval=None if sd is None else [value - sd, value + sd],
        interval_kind="" if sd is None else SPREAD_KIND,
        note=note,
    )


def check_prefix(prefix: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*", prefix):
        raise ValueError(
            f"prefix={prefix!r}: name the feature extractor in lower-case letters and digits, such "
            "as 'shapes' or 'inception'; a bare FID is never reported"
        )


def _covariance_root(features: Array) -> Array:
    """R with R^T R = covariance, at most D rows."""
    root = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if root.shape[0] > root.shape[1]:
        return np.asarray(np.linalg.qr(root, mode="r"), dtype=np.float64)
    return np.asarray(root, dtype=np.float64)


def _squared_mmd(a: Array, b: Array, *, paired: bool) -> float:
    size, width = a.shape
    within = (a @ a.T / width + 1) ** 3 + (b @ b.T / width + 1) ** 3
    across = (a @ b.T / width + 1) ** 3
    pairs = size * (size - 1)
    off_diagonal = (within.sum() - np.trace(within)) / pairs
    if paired:
        return float(off_diagonal - 2 * (across.sum() - np.trace(across)) / pairs)
    return float(off_diagonal - 2 * across.sum() / size**2)


def _check_features(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features of shape {a.shape} and {b.shape}; give (N, D) and (M, D) with at least "
            "2 images each"
        )
