"""What a data set says to the harness. One is a dataclass, whose fields are its settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from evaluation.datasets.picture_files import PictureFile
from evaluation.outside_files import text_fault

SPLITS = ("evaluation", "calibration")
FILES = ("image", "mask_image", "control_image")  # pictures that a pipeline's call may take
CLASS_LABELS = "class_labels"  # as the calls of class-conditional pipelines name it
MOST_ID_BYTES = 200  # the id names files, which a file system lets have 255
MOST_CHARACTERS = 20_000  # of a prompt: tokenizers need minutes for a million

Argument = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and the id that names its images and seeds its noise.

    Raises:
        ValueError: an id that is no file's name, or a text that no tokenizer can be given.
    """

    id: str
    text: str | None  # None: the pipeline's call takes no prompt
    files: tuple[tuple[str, PictureFile], ...] = ()  # names of `FILES`, each with its picture
    arguments: tuple[tuple[str, Argument], ...] = ()  # more of the call's, by their names there

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.text, str | None):
            raise ValueError(f"id {self.id!r}, prompt {self.text!r}; both are texts")
        fault = _id_fault(self.id)
        if fault:
            raise ValueError(
                f"id {self.id[:40]!r} {fault}; it names the image's file: give letters, digits, "
                "'-', '_' and the like"
            )
        texts = {"prompt": self.text, **dict(self.arguments)}
        for name, text in texts.items():
            if not isinstance(text, str):
                continue
            if (fault := text_fault(text)) is not None:
                raise ValueError(f"{name} of id {self.id!r} holds {fault}; take it out")
            if len(text) > MOST_CHARACTERS:
                raise ValueError(
                    f"{name} of id {self.id!r} has {len(text)} characters; give "
                    f"{MOST_CHARACTERS} at most"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """What it gives to the pipeline's call."""
        text = () if self.text is None else ("prompt",)
        return (*text, *(name for name, _ in self.files), *(name for name, _ in self.arguments))

    @property
    def shown(self) -> str:
        """What people read of it: its text, else what stands for one."""
        if self.text is not None:
            return self.text
        return ", ".join(f"{name} {value}" for name, value in self.arguments) or self.id


def _id_fault(name: str) -> str | None:
    """Why an id cannot name a file."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if (fault := text_fault(name)) is not None:
        return f"holds {fault}"
    if not name.isprintable() or "/" in name:
        return "holds a '/', a line break or another sign that is not printed"
    if len(name.encode()) > MOST_ID_BYTES:
        return f"has {len(name.encode())} bytes, more than {MOST_ID_BYTES}"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return f"has signs that this Python's {sys.getfilesystemencoding()} lacks (PYTHONUTF8=1)"
    return None


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

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        """Where the true image of each of these prompts lies, by id; empty if they are drawn.

        They are read there and never copied; one may be missing.
        """
        ...

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Draws those of these evaluation prompts as `<id>.png`; only if no file has them."""
        ...
