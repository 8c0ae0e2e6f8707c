"""What a data set says to the harness. One is a dataclass, whose fields are its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

SPLITS = ("evaluation", "calibration")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and the id that names its images and seeds its noise."""

    id: str
    text: str


@runtime_checkable
class Dataset(Protocol):
    """Prompts to calibrate with and to evaluate on, and the true images if there are any."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    evaluation_prompts: int
    calibration_prompts: int
    seed: int
    calibration_seed: int | None  # draws the calibration prompts; null is `seed`

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts of each of `SPLITS`, as many as the settings ask for, always the same.

        Raises:
            ValueError: a file is missing or malformed, or has too few prompts.
        """
        ...

    def has_images(self) -> bool:
        """Whether there are true images of the evaluation prompts."""
        ...

    def image_files(self, prompts: Sequence[Prompt]) -> Sequence[Path]:
        """The files that the true images of these prompts are made from; none if they are drawn.

        Their contents decide the true images, along with prompts and code; one may be missing.
        """
        ...

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """The true images of these evaluation prompts as `<id>.png`; only if it has images.

        Raises:
            ValueError: an image is missing.
        """
        ...
