"""`shapes`: a procedural dataset of captioned scenes, unbounded and deterministic.

A scene has one to three objects, each in its own cell of a 3x3 grid, on a plain background. The
caption names shape, colour, size and cell of every object; what it does not name is a jitter of
at most two pixels in place and one in radius, so that a prompt leaves something to the noise.

Splits are disjoint by construction: the canonical form of a scene (objects sorted) is hashed, and
the hash alone says to which split the scene belongs, so that no prompt of one split can turn up in
another, in whatever order its objects are named.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.datasets.interface import Prompt
from evaluation.datasets.picture_files import PictureFile
from evaluation.images import write_png

IMAGE_SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "cyan": (60, 210, 220),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 12),
    "gray": (125, 125, 125),
    "white": (245, 245, 245),
    "brown": (100, 65, 40),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, float] = {"small": 6.0, "large": 10.0}  # radius in pixels
CELLS = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
SPLITS = ("train", "calibration", "evaluation")
MAX_OBJECTS = 3
_CELL_PITCH = IMAGE_SIZE / 3
_POSITION_JITTER = 2.0
_RADIUS_JITTER = 1.0


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a scene; every field is an index into the tables above."""

    shape: int
    colour: int
    size: int
    cell: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and one to three objects in the order in which the caption names them."""

    background: int
    objects: tuple[Object, ...]

    @property
    def caption(self) -> str:
        """For example `large red circle top left, small blue square center, black background`."""
        parts = [
            f"{list(SIZES)[o.size]} {list(COLOURS)[o.colour]} {SHAPES[o.shape]} {CELLS[o.cell]}"
            for o in self.objects
        ]
        return ", ".join([*parts, f"{list(BACKGROUNDS)[self.background]} background"])

    @property
    def split(self) -> str:
        """The one split to which this scene belongs: 80 % train, 10 % each of the others."""
        canonical = sorted((o.cell, o.shape, o.colour, o.size) for o in self.objects)
        digest = hashlib.sha256(repr((self.background, canonical)).encode()).digest()
        bucket = digest[0] % 10
        return {0: "evaluation", 1: "calibration"}.get(bucket, "train")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt of a split: its id (also its file name and the root of its noise) and its scene."""

    id: str
    scene: Scene

    @property
    def prompt(self) -> str:
        return self.scene.caption


def _random_scene(rng: np.random.Generator) -> Scene:
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    cells = rng.permutation(len(CELLS))[:count]
    objects = tuple(
        Object(
            shape=int(rng.integers(len(SHAPES))),
            colour=int(rng.integers(len(COLOURS))),
            size=int(rng.integers(len(SIZES))),
            cell=int(cell),
        )
        for cell in cells
    )
    return Scene(background=int(rng.integers(len(BACKGROUNDS))), objects=objects)


def samples(split: str, *, seed: int = 0) -> Iterator[Sample]:
    """All samples of a split, without end and without a repeated prompt; equal for equal arguments.

    Raises:
        ValueError: the split is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"shapes has no split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    seen: set[str] = set()
    while True:
        scene = _random_scene(rng)
        if scene.split != split or scene.caption in seen:
            continue
        yield Sample(id=f"{split}-{seed}-{len(seen):05d}", scene=scene)
        seen.add(scene.caption)


def take(split: str, count: int, *, seed: int = 0) -> list[Sample]:
    """The first `count` samples of a split."""
    source = samples(split, seed=seed)
    return [next(source) for _ in range(count)]


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels (negative inside); all shapes have about the same area."""
    if shape == "circle":
        return np.asarray(np.hypot(dx, dy) - radius)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(dx), np.abs(dy)) - 0.89 * radius)
    if shape == "triangle":
        half = 1.25 * radius
        sides = (np.abs(dx) * np.sqrt(3.0) / 2.0) + dy * 0.5 - half * 0.42
        return np.asarray(np.maximum(sides, -dy - half * 0.75) * 1.0)
    arm = 0.4 * radius
    bar = np.maximum(np.abs(dx) - 1.1 * radius, np.abs(dy) - arm)
    return np.asarray(np.minimum(bar, np.maximum(np.abs(dy) - 1.1 * radius, np.abs(dx) - arm)))


def render(scene: Scene, *, key: str) -> np.ndarray:
    """The scene as an image.

    Args:
        scene: what to draw.
        key: root of the jitter; the same scene and key give the same image (use the sample's id).

    Returns:
        uint8 array of shape (64, 64, 3).
    """
    seed = int.from_bytes(hashlib.sha256(f"{key}|{scene.caption}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    axis = np.arange(IMAGE_SIZE) + 0.5
    x, y = np.meshgrid(axis, axis)
    background = list(BACKGROUNDS.values())[scene.background]
    canvas = np.broadcast_to(np.asarray(background, float), (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    for item in scene.objects:
        row, column = divmod(item.cell, 3)
        jitter = rng.uniform(-_POSITION_JITTER, _POSITION_JITTER, size=2)
        radius = list(SIZES.values())[item.size] + rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER)
        dx = x - ((column + 0.5) * _CELL_PITCH + jitter[0])
        dy = (row + 0.5) * _CELL_PITCH + jitter[1] - y  # upwards
        cover = np.clip(0.5 - _distance(SHAPES[item.shape], dx, dy, radius), 0.0, 1.0)[..., None]
        colour = np.asarray(list(COLOURS.values())[item.colour], float)
        canvas = canvas * (1.0 - cover) + colour * cover
    return np.round(canvas).astype(np.uint8)


@dataclass(kw_only=True)
class Shapes:
    """The first samples of each split, whose true images are drawn."""

    name: str
    evaluation_prompts: int
    calibration_prompts: int
    seed: int
    calibration_seed: int | None  # null is `seed`

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        own = self.seed if self.calibration_seed is None else self.calibration_seed
        return {
            "evaluation": _prompts("evaluation", self.evaluation_prompts, seed=self.seed),
            "calibration": _prompts("calibration", self.calibration_prompts, seed=own),
        }

    def has_images(self) -> bool:
        return True

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        return {}

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        wanted = {prompt.id for prompt in prompts}
        for sample in take("evaluation", self.evaluation_prompts, seed=self.seed):
            if sample.id in wanted:
                write_png(folder / f"{sample.id}.png", render(sample.scene, key=sample.id))


@functools.lru_cache(maxsize=64)  # a sweep asks again for each of its models
def _prompts(split: str, count: int, *, seed: int) -> tuple[Prompt, ...]:
    drawn = take(split, count, seed=seed)
    return tuple(Prompt(id=sample.id, text=sample.prompt) for sample in drawn)
