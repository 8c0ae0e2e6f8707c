"""Frechet and kernel distances between the features of two sets of images.

The features come from an extractor that the caller names; metric names carry that name, since
distances from different extractors or resizers cannot be compared.

A distance comes with what each image contributes to it: its influence, the first-order change of
the distance when the image gets more weight. Contributions have mean 0 over the images of a set;
their spread over sqrt(N) is the standard error of the distance, and of two rows against the same
images the paired differences of contributions give that of the difference, which is far smaller.

Shapes: N images of one set, M of the other, D features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.records import Metric

Array = np.ndarray[Any, np.dtype[np.float64]]
Kernel = Callable[[Array, Array], Array]  # (N, D) and (M, D) -> (N, M)

SPREAD_KIND = "sd"
_ROWS = 1000  # of a kernel matrix that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of two sets, and what each image of them contributes: (N,) and (M,), of mean 0."""

    value: float
    of_a: Array
    of_b: Array


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


def cubic_kernel(a_ND: Array, b_MD: Array) -> Array:
    """KID's: (x.y / D + 1)^3.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), section 4.
    """
    return np.asarray((a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3, dtype=np.float64)


def gaussian_kernel(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(a_ND: Array, b_MD: Array) -> Array:
        squares_NM = (a_ND**2).sum(axis=1)[:, None] + (b_MD**2).sum(axis=1) - 2 * a_ND @ b_MD.T
        return np.asarray(np.exp(-squares_NM.clip(min=0) / (2 * sigma**2)), dtype=np.float64)

    return kernel


def kernel_distance(
    a_ND: Array, b_MD: Array, *, paired: bool = False, kernel: Kernel = cubic_kernel
) -> Distance:
    """Squared maximum mean discrepancy over all pairs of images.

    The estimator is unbiased, so near 0 it may be negative. Other packages average it over random
    subsets, which has the same expectation and more noise, or count an image as its own partner,
    which is biased upwards. Images of the same prompts are alike whatever the model: a term of the
    two would pull the distance below 0, the further the fewer images there are, so that `paired`
    leaves these terms out.

    Args:
        paired: row i of both sets is of one prompt.

    Source: Binkowski et al. 2018 (arXiv:1801.01401), eq. 4; paired: Gretton et al. 2012 (JMLR 13),
    eq. 4, where no sum has a term with i = j; contributions: Hoeffding's projection of it.
    """
    _check_features(a_ND, b_MD)
    assert not paired or len(a_ND) == len(b_MD)

    def sums(x: Array, y: Array, other_pairs: bool) -> Array:
        return _kernel_sums(x, y, kernel=kernel, other_pairs=other_pairs)

    within_a = sums(a_ND, a_ND, True) / (len(a_ND) - 1)
    within_b = sums(b_MD, b_MD, True) / (len(b_MD) - 1)
    across_a = sums(a_ND, b_MD, paired) / (len(b_MD) - paired)
    across_b = sums(b_MD, a_ND, paired) / (len(a_ND) - paired)
    of_a, of_b = within_a - across_a, within_b - across_b
    return Distance(
        value=float(of_a.mean() + of_b.mean()),
        of_a=2 * (of_a - of_a.mean()),
        of_b=2 * (of_b - of_b.mean()),
    )


def scaled(distance: Distance, factor: float) -> Distance:
    """The same in other units."""
    return Distance(
        value=factor * distance.value, of_a=factor * distance.of_a, of_b=factor * distance.of_b
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


def _kernel_sums(a_ND: Array, b_MD: Array, *, kernel: Kernel, other_pairs: bool) -> Array:
    """Sum of k(a_i, b_j) over j for each i; `other_pairs` leaves j = i out."""
    sums = np.empty(len(a_ND))
    for start in range(0, len(a_ND), _ROWS):
        rows = slice(start, start + _ROWS)
        values_RM = kernel(a_ND[rows], b_MD)
        sums[rows] = values_RM.sum(axis=1)
        if other_pairs:
            sums[rows] -= values_RM.diagonal(offset=start)
    return np.asarray(sums, dtype=np.float64)


def _check_features(a: Array, b: Array) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features of shape {a.shape} and {b.shape}; give (N, D) and (M, D) with at least "
            "2 images each"
        )
