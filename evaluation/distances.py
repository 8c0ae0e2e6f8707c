"""Frechet and kernel distances between two sets of images.

Images are read and resized by clean-fid's own code (`mode="clean"`: PIL bicubic with antialias to
299x299). The features come from an extractor that the caller names; metric names carry that name,
since distances from different extractors or resizers cannot be compared.

A distance comes with what each image contributes to it: its influence, the first-order change of
the distance when the image gets more weight. Contributions have mean 0 over the images of a set;
their spread over sqrt(N) is the standard error of the distance, and of two rows against the same
images the paired differences of contributions give that of the difference, which is far smaller.

Shapes: N images of one set, M of the other, D features.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.clip_evaluator import Evaluator, normalize_batch
from evaluation.datasets.picture_files import PictureFile
from evaluation.feature_cache import file_hash
from evaluation.images import check_ids
from evaluation.records import Metric, MetricUnavailable

Array = np.ndarray[Any, np.dtype[np.float64]]
Extractor = Callable[[torch.Tensor], torch.Tensor]

INCEPTION_NAME = "inception-2015-12-05.pt"
SPREAD_KIND = "sd"
_BATCH = 32
_MODE = "clean"
_ROWS = 1000  # of a kernel matrix that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of two sets, and what each image of them contributes: (N,) and (M,), of mean 0."""

    value: float
    of_a: Array
    of_b: Array


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

    The folder must hold these and no others.
    """
    check_ids(folder, ids)
    pictures = [PictureFile(path=Path(folder) / f"{name}.png") for name in ids]
    return picture_features(pictures, extractor=extractor)


def picture_features(pictures: Sequence[PictureFile], *, extractor: Extractor) -> Array:
    """Features of pictures of any format and size, row i for pictures[i], float64 (N, D).

    They are read where they lie and resized by clean-fid's own function; of PNG images these are
    the features of clean-fid's own reading of their folder, bit for bit.
    """
    from cleanfid.resize import build_resizer

    resize = build_resizer(_MODE)
    rows = []
    for start in range(0, len(pictures), _BATCH):
        resized = [resize(np.array(p.read())) for p in pictures[start : start + _BATCH]]
        batch_NCHW = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            rows.append(extractor(batch_NCHW).detach().cpu().numpy())
    array: Array = np.concatenate(rows).astype(np.float64)
    if not np.isfinite(array).all():
        where = pictures[int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])].name
        raise ValueError(f"{where}: the extractor gave NaN or infinite features")
    return array


def frechet_distance(a_ND: Array, b_MD: Array) -> Distance:
    """Frechet distance of the Gaussians fitted to two sets of features; 0 or more.

    With centred A/sqrt(N-1) and B/sqrt(M-1), Tr sqrt(Ca Cb) is the sum of the singular values s of
    A B^T = U s V^T: exact, without a square root of a singular matrix. QR keeps it D x D when N
    exceeds D. Image i at distance d_i from the mean contributes
    2 (mu_a - mu_b).d_i + N (|d_i|^2 / (N-1) - sum_k s_k U_ik^2), less the mean over the images.

    Source: Heusel et al. 2017 (arXiv:1706.08500), eq. 6; the derivative of its trace by the map
    of optimal transport, as in Rippl, Munk and Sturm 2016 (J. Multivariate Anal. 151), theorem 2.1.
    """
    _check_features(a_ND, b_MD)
    if np.array_equal(a_ND, b_MD):
        return Distance(value=0.0, of_a=np.zeros(len(a_ND)), of_b=np.zeros(len(b_MD)))
    a, b = _centred(a_ND), _centred(b_MD)
    left, singular, right = np.linalg.svd(a.root @ b.root.T, full_matrices=False)
    shift = a.mean - b.mean
    distance = shift @ shift + (a.root**2).sum() + (b.root**2).sum() - 2 * singular.sum()
    return Distance(
        value=max(0.0, float(distance)),
        of_a=a.contributions(shift, left, singular),
        of_b=b.contributions(-shift, right.T, singular),
    )


def kernel_distance(a_ND: Array, b_MD: Array, *, paired: bool = False) -> Distance:
    """Kernel distance with k(x, y) = (x.y / D + 1)^3 over all pairs of images.

    The estimator is unbiased, so near 0 it may be negative. Other packages average it over random
    subsets, which has the same expectation and more noise. Images of the same prompts are alike
    whatever the model: a term of the two would pull the distance below 0, the further the fewer
    images there are, so that `paired` leaves these terms out.

    Args:
        paired: row i of both sets is of one prompt.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 4; paired: Gretton et al. 2012 (JMLR 13),
    eq. 4, where no sum has a term with i = j; contributions: Hoeffding's projection of it.
    """
    _check_features(a_ND, b_MD)
    assert not paired or len(a_ND) == len(b_MD)
    within_a = _kernel_sums(a_ND, a_ND, other_pairs=True) / (len(a_ND) - 1)
    within_b = _kernel_sums(b_MD, b_MD, other_pairs=True) / (len(b_MD) - 1)
    across_a = _kernel_sums(a_ND, b_MD, other_pairs=paired) / (len(b_MD) - paired)
    across_b = _kernel_sums(b_MD, a_ND, other_pairs=paired) / (len(a_ND) - paired)
    of_a, of_b = within_a - across_a, within_b - across_b
    return Distance(
        value=float(of_a.mean() + of_b.mean()),
        of_a=2 * (of_a - of_a.mean()),
        of_b=2 * (of_b - of_b.mean()),
    )


def image_values(distance: Distance, *, paired: bool) -> Array:
    """One number an image of the first set, (N,), whose mean is the distance.

    The spread of these numbers is that of the distance. `paired` adds what the other set's image of
    the same prompt contributes; else the other set is held fixed, as published statistics are.
    """
    own = distance.of_a + distance.of_b if paired else distance.of_a
    return np.asarray(distance.value + own, dtype=np.float64)


def distance_metric(values_N: Array, *, value: float, against: str, note: str) -> Metric:
    """A distance with its spread as sd, from `image_values`."""
    sd = float(values_N.std(ddof=1)) / len(values_N) ** 0.5
    return Metric(
        value=value,
        higher_is_better=False,
        n=len(values_N),
        against=against,
        standard_error=sd,
        interval=[value - sd, value + sd],
        interval_kind=SPREAD_KIND,
        note=note,
    )


def check_prefix(prefix: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*", prefix):
        raise ValueError(
            f"prefix={prefix!r}: name the feature extractor in lower-case letters and digits, such "
            "as 'shapes' or 'inception'; a bare FID is never reported"
        )


@dataclass(frozen=True, kw_only=True)
class _Centred:
    """Features about their mean. `root` R has R^T R = covariance and at most D rows.

    `basis` Q has Q R = centred / sqrt(N - 1); None where R is that itself.
    """

    mean: Array
    centred: Array
    root: Array
    basis: Array | None

    def contributions(self, shift: Array, left: Array, singular: Array) -> Array:
        """See `frechet_distance`; `left` are the singular vectors on this set's side."""
        vectors = left if self.basis is None else self.basis @ left
        count = len(self.centred)
        squares = (self.centred**2).sum(axis=1) / (count - 1) - (vectors**2) @ singular
        raw = 2 * self.centred @ shift + count * squares
        return np.asarray(raw - raw.mean(), dtype=np.float64)


def _centred(features: Array) -> _Centred:
    mean = features.mean(axis=0)
    centred = features - mean
    root = centred / np.sqrt(len(features) - 1)
    if root.shape[0] <= root.shape[1]:
        return _Centred(mean=mean, centred=centred, root=root, basis=None)
    basis, small = np.linalg.qr(root)
    return _Centred(mean=mean, centred=centred, root=small, basis=basis)


def _kernel_sums(a_ND: Array, b_MD: Array, *, other_pairs: bool) -> Array:
    """Sum of k(a_i, b_j) over j for each i; `other_pairs` leaves j = i out."""
    width = a_ND.shape[1]
    sums = np.concatenate(
        [
            ((a_ND[start : start + _ROWS] @ b_MD.T / width + 1) ** 3).sum(axis=1)
            for start in range(0, len(a_ND), _ROWS)
        ]
    )
    if other_pairs:
        sums -= (np.einsum("nd,nd->n", a_ND, b_MD) / width + 1) ** 3
    return np.asarray(sums, dtype=np.float64)


def _check_features(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features of shape {a.shape} and {b.shape}; give (N, D) and (M, D) with at least "
            "2 images each"
        )
