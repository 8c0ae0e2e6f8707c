"""How far are distances of few images from those of many?

    python -m experiments.studies.distance_bias

Features of two Gaussians, of which Frechet and kernel distances are known in closed form; and
subsets of images of `shapes`, against what thousands of them give.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from evaluation.clip_evaluator import image_features, load_evaluator
from evaluation.datasets.shapes import Shapes
from evaluation.distances import frechet_distance, kernel_distance
from evaluation.images import load_images
from evaluation.report.markdown import pipe_table
from experiments.store.folders import write_text
from experiments.store.paths import RESULTS, ROOT
from experiments.studies.csv_text import csv_text

NAME = "distance_bias"  # of the file
COMMAND = f"python -m experiments.studies.{NAME}"
SIZES = (16, 128, 512, 1024, 2048)
WIDTHS = (64, 512)
SAMPLES = 12  # of the largest n; of smaller ones, which spread more, up to ten times as many
IMAGES = 3000
SHIFT, SPREAD = 0.15, 1.1  # of the second Gaussian: what its mean and deviations are
SIGMA = 10.0  # of CMMD's kernel
EVALUATOR = ROOT / "experiments/tiny/models/evaluator"
_MILD = 2  # the side that pictures are reduced by: what makes the second set another

Array = np.ndarray[Any, np.dtype[np.float64]]
Estimator = Callable[[Array, Array], float]


@dataclass(frozen=True, kw_only=True)
class Bias:
    """An estimator at one n: mean and standard deviation over samples, against the truth."""

    features: str
    estimator: str
    n: int
    truth: float
    mean: float
    deviation: float
    samples: int


def fid(a_ND: Array, b_ND: Array) -> float:
    return frechet_distance(a_ND, b_ND).value


def kid(a_ND: Array, b_ND: Array) -> float:
    return 1000 * kernel_distance(a_ND, b_ND).value


def gaussian(a_ND: Array, b_ND: Array) -> float:
    """CMMD's kernel, all pairs of two different images: unbiased."""
    within = (_mean_of_others(x) for x in (a_ND, b_ND))
    return float(1000 * (sum(within) - 2 * _kernel(a_ND, b_ND).mean()))


def gaussian_v(a_ND: Array, b_ND: Array) -> float:
    """The same with each image paired with itself too, as the usual port of CMMD has it."""
    within = _kernel(a_ND, a_ND).mean() + _kernel(b_ND, b_ND).mean()
    return float(1000 * (within - 2 * _kernel(a_ND, b_ND).mean()))


ESTIMATORS: Mapping[str, Estimator] = {
    "FID": fid,
    "KID x1000": kid,
    "Gaussian kernel x1000": gaussian,
    "the same, biased form": gaussian_v,
}


def _kernel(a_ND: Array, b_MD: Array) -> Array:
    squares = (a_ND**2).sum(1)[:, None] + (b_MD**2).sum(1)[None] - 2 * a_ND @ b_MD.T
    return np.asarray(np.exp(-squares / (2 * SIGMA**2)))


def _mean_of_others(a_ND: Array) -> float:
    count = len(a_ND)
    return float((_kernel(a_ND, a_ND).sum() - count) / (count * (count - 1)))


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """N(0, I) and N(SHIFT, SPREAD^2 I) of one width, and what their distances are."""

    width: int

    def draw(self, generator: np.random.Generator, n: int) -> tuple[Array, Array]:
        a, b = generator.normal(size=(2, n, self.width))
        return a, SHIFT + SPREAD * b

    def truth(self, estimator: str) -> float:
        """
        Source: Frechet: Dowson and Landau 1982. KID: moments of x.y of independent Gaussians.
        Gaussian kernel: the integral of a product of Gaussian densities.
        """
        if estimator == "FID":
            return self.width * (SHIFT**2 + (SPREAD - 1) ** 2)
        mean = self._cubic if estimator.startswith("KID") else self._smooth
        return 1000 * (mean("aa") + mean("bb") - 2 * mean("ab"))

    def _moments(self, which: str) -> list[tuple[Array, float]]:
        known = {"a": (np.zeros(self.width), 1.0), "b": (np.full(self.width, SHIFT), SPREAD**2)}
        return [known[name] for name in which]

    def _cubic(self, which: str) -> float:
        """Mean of (x.y / D + 1)^3."""
        (mx, vx), (my, vy) = self._moments(which)
        dot, width = float(mx @ my), self.width
        xx, yy = float(mx @ mx), float(my @ my)
        spread = width * vx * vy + vy * xx  # of x.y given x, in the mean: vy |x|^2
        second = dot**2 + vx * yy + spread
        third = dot**3 + 3 * dot * vx * yy + 3 * (dot * spread + 2 * vx * vy * dot)
        return 1 + 3 * dot / width + 3 * second / width**2 + third / width**3

    def _smooth(self, which: str) -> float:
        """Mean of exp(-|x - y|^2 / (2 sigma^2))."""
        (mx, vx), (my, vy) = self._moments(which)
        total = SIGMA**2 + vx + vy
        away = float(((mx - my) ** 2).sum())
        return float((SIGMA**2 / total) ** (self.width / 2) * np.exp(-away / (2 * total)))


def _samples(n: int, *, least: int) -> int:
    return min(10 * least, max(least, least * 1024 // n))


def of_gaussians(*, samples: int, sizes: Sequence[int] = SIZES) -> list[Bias]:
    found = []
    for width in WIDTHS:
        source = Gaussians(width=width)
        for n in sizes:
            generator = np.random.default_rng([width, n])
            pairs = [source.draw(generator, n) for _ in range(_samples(n, least=samples))]
            found += [
                _bias(pairs, name, n=n, truth=source.truth(name), features=f"Gaussian, {width}")
                for name in ESTIMATORS
            ]
    return found


def _bias(
    pairs: Sequence[tuple[Array, Array]], name: str, *, n: int, truth: float, features: str
) -> Bias:
    values = [ESTIMATORS[name](a, b) for a, b in pairs]
    return Bias(
        features=features,
        estimator=name,
        n=n,
        truth=truth,
        mean=float(np.mean(values)),
        deviation=float(np.std(values, ddof=1)),
        samples=len(values),
    )


def shapes_features(count: int) -> tuple[Array, Array]:
    """Features of `count` scenes, and of as many others that were reduced and enlarged again."""
    evaluator = load_evaluator(EVALUATOR)
    scenes = Shapes(
        name="shapes", evaluation_prompts=2 * count, calibration_prompts=1, seed=0,
        calibration_seed=None,
    )  # fmt: skip
    prompts = scenes.prompts()["evaluation"]
    with tempfile.TemporaryDirectory(prefix="distance-bias-") as folder:
        scenes.write_true_images(Path(folder), prompts)
        images = load_images(folder, [prompt.id for prompt in prompts])
    images[count:] = torch.from_numpy(np.stack([_reduced(one.numpy()) for one in images[count:]]))
    features: Array = image_features(evaluator, images).to(torch.float64).numpy()
    scaled = features * features.shape[1] ** 0.5  # of unit length: entries near 1, as elsewhere
    return scaled[:count], scaled[count:]


def _reduced(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    picture = Image.fromarray(image)
    small = picture.resize((picture.width // _MILD, picture.height // _MILD))
    return np.asarray(small.resize(picture.size))


def of_shapes(a: Array, b: Array, *, samples: int, sizes: Sequence[int] = SIZES) -> list[Bias]:
    """Subsets without replacement against all of both."""
    found = []
    truths = {name: estimate(a, b) for name, estimate in ESTIMATORS.items()}
    truths["the same, biased form"] = truths["Gaussian kernel x1000"]
    for n in (size for size in sizes if size < len(a)):
        generator = np.random.default_rng(n)
        pairs = [
            (a[generator.permutation(len(a))[:n]], b[generator.permutation(len(b))[:n]])
            for _ in range(_samples(n, least=samples))
        ]
        said = f"shapes, {a.shape[1]} ({len(a)} images for the truth)"
        found += [_bias(pairs, name, n=n, truth=truths[name], features=said) for name in ESTIMATORS]
    return found


def _place(one: Bias) -> tuple[str, int, int]:
    return (one.features, list(ESTIMATORS).index(one.estimator), one.n)


def _error(one: Bias) -> float:
    """Half of the bias's 95 % interval, in % of the truth."""
    return 196 * one.deviation / one.samples**0.5 / abs(one.truth)


def report(found: Sequence[Bias]) -> str:
    body = [
        [
            one.features,
            one.estimator,
            str(one.n),
            f"{one.truth:.4g}",
            f"{one.mean:.4g}",
            f"{one.deviation:.2g}",
            f"{100 * (one.mean - one.truth) / one.truth:+.0f} ± {_error(one):.0f} %",
        ]
        for one in sorted(
            found, key=lambda one: (one.features, list(ESTIMATORS).index(one.estimator))
        )
    ]
    counts = [one.samples for one in found]
    head = ["features", "distance", "n", "of all", "mean at n", "sd at n", "bias"]
    return "\n".join(
        [
            f"How far are distances of few images from those of many? `{COMMAND}`.",
            "",
            f"{min(counts)} to {max(counts)} samples of n images against n others; bias in % of "
            "the truth, ± half of its 95 % interval. Gaussian: N(0, I) against "
            f"N({SHIFT:g}, {SPREAD:g}² I) of 64 and 512 features, `of all` in closed form. Shapes: "
            "scenes against other scenes that were reduced to half and enlarged again, features of "
            "the tiny evaluator, subsets without replacement; `of all` is the distance of all of "
            "them, which for FID is biased itself. Gaussian kernel: CMMD's, sigma 10.",
            "",
            pipe_table(head, body, numeric=[False, False, *[True] * 5]),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog=COMMAND)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = of_gaussians(samples=options.samples)
    found += of_shapes(*shapes_features(options.images), samples=options.samples)
    write_text(options.out / f"{NAME}.md", report(found))
    head = ["features", "distance", "n", "truth", "mean", "sd", "samples"]
    body: list[list[str | float]] = [
        [one.features, one.estimator, one.n, one.truth, one.mean, one.deviation, one.samples]
        for one in found
    ]
    write_text(options.out / f"{NAME}.csv", csv_text(head, body))


if __name__ == "__main__":
    main()
