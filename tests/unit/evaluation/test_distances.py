import math
import warnings

import numpy as np
import pytest

from evaluation import distances
from evaluation.distances import (
    check_prefix,
    cubic_kernel,
    distance_metric,
    frechet_distance,
    gaussian_kernel,
    image_values,
    kernel_distance,
)


def features(count: int, width: int, *, seed: int, shift: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / math.sqrt(width)
    return generator.normal(size=(count, width)) @ mixing + shift


def frechet_distance_gaussians(
    mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray
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


def clean_fid_distance(a: np.ndarray, b: np.ndarray) -> float:
    from cleanfid import fid

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return float(fid.fid_from_feats(a, b))


def test_two_known_gaussians() -> None:
    """Commuting covariances: |mean|^2 + sum (sqrt(a) - sqrt(b))^2."""
    mean, a, b = np.array([3.0, 4.0]), np.diag([4.0, 9.0]), np.diag([1.0, 16.0])
    value = frechet_distance_gaussians(mean, a, np.zeros(2), b)
    assert value == pytest.approx(25 + (2 - 1) ** 2 + (3 - 4) ** 2)
    assert frechet_distance_gaussians(mean, a, mean, a) == pytest.approx(0, abs=1e-12)


def test_features_with_exactly_those_moments() -> None:
    rows = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * math.sqrt(3 / 4)
    a = rows * np.array([2.0, 3.0]) + np.array([3.0, 4.0])  # covariance diag(4, 9)
    b = rows * np.array([1.0, 4.0])
    assert frechet_distance(a, b).value == pytest.approx(27)


@pytest.mark.parametrize(("count", "width"), [(200, 16), (12, 40)])
def test_frechet_agrees_with_the_gaussian_form(count: int, width: int) -> None:
    a, b = features(count, width, seed=0), features(count + 5, width, seed=1, shift=0.1)
    expected = frechet_distance_gaussians(
        a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False)
    )
    # square roots of eigenvalues that are zero but for rounding limit the other form
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-6)


def test_frechet_agrees_with_clean_fid() -> None:
    a, b = features(300, 24, seed=0), features(300, 24, seed=1, shift=0.2)
    assert frechet_distance(a, b).value == pytest.approx(clean_fid_distance(a, b), rel=1e-8)


def test_identical_features_are_zero_and_never_negative() -> None:
    a = features(40, 64, seed=0)
    assert frechet_distance(a, a.copy()).value == 0.0
    assert 0.0 <= frechet_distance(a, a[::-1]).value < 1e-10  # the same set in another order
    assert 0.0 <= frechet_distance(a, a + 1e-9).value < 1e-10


def test_kernel_distance_is_what_clean_fid_draws_around() -> None:
    """clean-fid averages random subsets; over all pairs there is no draw left."""
    from cleanfid import fid

    a, b = features(60, 8, seed=0), features(60, 8, seed=1, shift=0.1)
    assert kernel_distance(a, b).value == pytest.approx(
        fid.kernel_distance(a, b, num_subsets=3), rel=1e-9
    )
    np.random.seed(7)
    drawn = [fid.kernel_distance(a, b, num_subsets=1, max_subset_size=30) for _ in range(400)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert kernel_distance(a, b).value == pytest.approx(np.mean(drawn), abs=4 * error)


def test_kernel_sums_in_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(37, 5, seed=0), features(29, 5, seed=1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(distances, "_ROWS", 8)
    parts = kernel_distance(a, b)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.of_a == pytest.approx(whole.of_a)


def test_kernel_distance_is_unbiased() -> None:
    values = [
        kernel_distance(features(40, 4, seed=s), features(40, 4, seed=1000 + s)).value
        for s in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))


def of_the_same_prompts(count: int, width: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that draw what the prompt says, each with noise of its own; one distribution."""
    prompts = features(count, width, seed=seed)
    noise = [0.3 * features(count, width, seed=10_000 * k + seed) for k in (1, 2)]
    return prompts + noise[0], prompts + noise[1]


def test_kernel_distance_of_the_same_prompts_is_unbiased() -> None:
    """The terms of one prompt's two images, left in (as between strangers), pull it below zero."""
    pairs = [of_the_same_prompts(40, 4, seed=s) for s in range(200)]
    error = {}
    for paired in (True, False):
        values = [kernel_distance(a, b, paired=paired).value for a, b in pairs]
        error[paired] = np.mean(values) / (np.std(values) / math.sqrt(len(values)))
    assert abs(error[True]) < 3
    assert error[False] < -10
    a, b = pairs[0]
    assert kernel_distance(a, a, paired=True).value == pytest.approx(0, abs=1e-12)
    assert kernel_distance(a, b + 1, paired=True).value > 0


def weighted_frechet(a: np.ndarray, b: np.ndarray, *, image: int, weight: float) -> float:
    """The Frechet distance where one image of `a` has some more weight."""
    weights = np.full(len(a), 1 - weight)
    weights[image] += weight * len(a)
    centred = a - np.average(a, axis=0, weights=weights)
    covariance = (centred * weights[:, None]).T @ centred / (len(a) - 1)
    return frechet_distance_gaussians(
        np.average(a, axis=0, weights=weights), covariance, b.mean(axis=0), np.cov(b, rowvar=False)
    )


@pytest.mark.parametrize("image", [0, 7, 49])
def test_what_an_image_contributes_is_the_derivative(image: int) -> None:
    a, b = features(50, 6, seed=0), features(60, 6, seed=1, shift=0.2)
    step = 1e-5
    up, down = (weighted_frechet(a, b, image=image, weight=w) for w in (step, -step))
    assert frechet_distance(a, b).of_a[image] == pytest.approx((up - down) / (2 * step), rel=1e-4)
    # symmetric: the other set's images contribute as if the sets were swapped
    assert frechet_distance(b, a).of_b[image] == pytest.approx(frechet_distance(a, b).of_a[image])


@pytest.mark.parametrize("name", ["frechet", "kernel"])
@pytest.mark.parametrize("paired", [True, False])
def test_spread_is_that_of_other_prompts(name: str, paired: bool) -> None:
    """Of a difference between two rows too: it is far smaller than either distance's own."""
    single, difference, said, said_difference = [], [], [], []
    fixed = features(60, 8, seed=77_777)
    for seed in range(150):
        prompts = features(60, 8, seed=seed)
        data = prompts + 0.5 * features(60, 8, seed=30_000 + seed) if paired else fixed
        rows = [
            1.05 * prompts + 0.1 * features(60, 8, seed=10_000 + seed),
            prompts + 0.2 * features(60, 8, seed=20_000 + seed),
        ]
        found = []
        for row in rows:
            distance = (
                frechet_distance(row, data)
                if name == "frechet"
                else kernel_distance(row, data, paired=paired)
            )
            values = image_values(distance, paired=paired)
            assert values.mean() == pytest.approx(distance.value)
            found.append((distance.value, values))
        single.append(found[0][0])
        difference.append(found[0][0] - found[1][0])
        said.append(found[0][1].std(ddof=1) / math.sqrt(60))
        said_difference.append((found[0][1] - found[1][1]).std(ddof=1) / math.sqrt(60))
    assert 0.8 < np.mean(said) / np.std(single) < 1.4
    assert 0.8 < np.mean(said_difference) / np.std(difference) < 1.4
    assert np.mean(said_difference) < 0.75 * np.mean(said)


def test_spread_of_the_metric() -> None:
    values = features(40, 1, seed=0)[:, 0]
    fid = distance_metric(values, value=3.0, against="dataset", note="as said")
    sd = values.std(ddof=1) / math.sqrt(40)
    assert (fid.value, fid.standard_error, fid.interval) == (3.0, sd, [3.0 - sd, 3.0 + sd])
    assert (fid.interval_kind, fid.n, fid.note) == ("sd", 40, "as said")
    with pytest.raises(ValueError, match="bare FID"):
        check_prefix("")


def test_fid_falls_with_n() -> None:
    """Why numbers of different n are never compared: the same two distributions."""
    few = frechet_distance(features(40, 16, seed=0), features(40, 16, seed=1)).value
    many = frechet_distance(features(2000, 16, seed=0), features(2000, 16, seed=1)).value
    assert few > 5 * many


def v_statistic(a: np.ndarray, b: np.ndarray, *, sigma: float) -> float:
    """As the usual port of CMMD has it: an image is its own partner too."""

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        squares = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        return float(np.exp(-squares / (2 * sigma**2)).mean())

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def test_gaussian_kernel_in_closed_form() -> None:
    """Two points a distance d apart: k = exp(-d^2 / (2 sigma^2))."""
    a, b = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert gaussian_kernel(5.0)(a, b)[0, 0] == pytest.approx(math.exp(-0.5))
    assert gaussian_kernel(5.0)(a, a)[0, 0] == 1.0
    assert cubic_kernel(a, b)[0, 0] == 1.0


def test_gaussian_kernel_distance_is_unbiased_and_the_v_statistic_is_not() -> None:
    """Of one distribution the truth is 0; self-pairs of a V-statistic add about 2 (1 - k) / n."""
    kernel = gaussian_kernel(2.0)
    pairs = [(features(30, 4, seed=s), features(30, 4, seed=1000 + s)) for s in range(150)]
    ours = [kernel_distance(a, b, kernel=kernel).value for a, b in pairs]
    usual = [v_statistic(a, b, sigma=2.0) for a, b in pairs]
    error = np.std(ours) / math.sqrt(len(ours))
    assert abs(np.mean(ours)) < 3 * error
    assert np.mean(usual) > 20 * error
    within = np.mean(
        [1 - gaussian_kernel(2.0)(a, a)[~np.eye(30, dtype=bool)].mean() for a, _ in pairs]
    )
    assert np.mean(usual) == pytest.approx(2 * within / 30, rel=0.1)
