"""A file of prompts: read whole or refused with the line; and what any data set must keep to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.datasets.interface import Dataset, Prompt
from evaluation.datasets.loading import load_dataset
from evaluation.datasets.prompts_file import PromptsFile
from evaluation.images import write_png


def prompts_file(path: Path, rows: list[dict[str, str]], **settings: Any) -> PromptsFile:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {
        "name": "mine",
        "path": str(path),
        "images": None,
        "evaluation_prompts": 2,
        "calibration_prompts": 2,
        "seed": 0,
        "calibration_seed": None,
    }
    return PromptsFile(**{**given, **settings})


def rows(evaluation: int = 3, calibration: int = 9) -> list[dict[str, str]]:
    return [
        *({"id": f"e{i}", "prompt": f"evaluation {i}"} for i in range(evaluation)),
        *(
            {"id": f"c{i}", "prompt": f"calibration {i}", "split": "calibration"}
            for i in range(calibration)
        ),
    ]


def test_the_first_prompts_of_each_split_are_read(tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", rows())
    assert isinstance(config, Dataset)
    dataset = load_dataset(config)
    assert [prompt.id for prompt in dataset.evaluation] == ["e0", "e1"]
    assert [prompt.id for prompt in dataset.calibration] == ["c0", "c1"]
    assert not config.has_images()


def test_a_calibration_seed_draws_the_calibration_prompts_alone(tmp_path: Path) -> None:
    drawn = load_dataset(prompts_file(tmp_path / "a.jsonl", rows(), calibration_seed=1))
    other = load_dataset(prompts_file(tmp_path / "b.jsonl", rows(), calibration_seed=2))
    assert drawn.evaluation == other.evaluation
    assert drawn.calibration != other.calibration


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"id": "a"}], "mine.jsonl:1: cannot read this line"),
        ([{"id": "a/b", "prompt": "x"}], "mine.jsonl:1: id 'a/b'"),
        ([{"id": "a", "prompt": "x", "split": "test"}], "split 'test'"),
        ([*rows(), {"id": "e0", "prompt": "x"}], "mine.jsonl:13: id 'e0'"),
        (rows(1, 9), "1 evaluation prompts of 2 asked for; add prompts or set dataset.evalu"),
        (
            [*rows(2, 1), {"id": "s", "prompt": "evaluation 0", "split": "calibration"}],
            "dataset mine: 1 prompts are in both splits, for example 'evaluation 0'",
        ),
    ],
)
def test_a_bad_file_is_refused(lines: list[dict[str, str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_dataset(prompts_file(tmp_path / "mine.jsonl", lines))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = prompts_file(tmp_path / "mine.jsonl", rows())
    config.path = "nowhere.jsonl"
    with pytest.raises(ValueError, match=r"dataset\.path=nowhere\.jsonl: no such file"):
        load_dataset(config)


def test_true_images_are_those_of_the_folder(tmp_path: Path) -> None:
    source, out = tmp_path / "true", tmp_path / "out"
    config = prompts_file(tmp_path / "mine.jsonl", rows(), images=str(source))
    prompts = load_dataset(config).evaluation
    write_png(source / "e0.png", np.full((4, 4, 3), 7, np.uint8))
    assert config.has_images()
    assert config.image_files(prompts) == [source / "e0.png", source / "e1.png"]
    with pytest.raises(ValueError, match=r"dataset\.images=.*true: e1\.png is missing"):
        config.write_true_images(out, prompts)
    config.write_true_images(out, prompts[:1])
    assert (out / "e0.png").read_bytes() == (source / "e0.png").read_bytes()


@dataclass(kw_only=True)
class Own:
    """A data set of one's own, with a mistake."""

    splits: dict[str, tuple[Prompt, ...]]
    name: str = "own"
    evaluation_prompts: int = 2
    calibration_prompts: int = 1
    seed: int = 0
    calibration_seed: int | None = None

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        return self.splits

    def has_images(self) -> bool:
        return False

    def image_files(self, prompts: object) -> tuple[Path, ...]:
        return ()

    def write_true_images(self, folder: Path, prompts: object) -> None: ...


A, B, C = (Prompt(id=name, text=name) for name in "abc")


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"evaluation": (A, B)}, r"prompts\(\) has evaluation; it must have evaluation and cal"),
        ({"evaluation": (A,), "calibration": (C,)}, "1 evaluation prompts with 1 different ids"),
        ({"evaluation": (A, A), "calibration": (C,)}, "2 evaluation prompts with 1 different ids"),
    ],
)
def test_a_data_set_that_breaks_its_word_is_refused(
    splits: dict[str, tuple[Prompt, ...]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        load_dataset(Own(splits=splits))
