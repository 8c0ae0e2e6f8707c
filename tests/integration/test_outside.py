"""A method and a data set in a folder of one's own run as those of the project do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.config.catalogue import describe_methods
from experiments.config.places import use_config_dirs
from experiments.config.request import read_request
from experiments.store.paths import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
SECTION = "## Things of your own"
DATASET = '''
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.datasets.interface import Prompt
from evaluation.datasets.picture_files import PictureFile
from evaluation.images import write_png


@dataclass(kw_only=True)
class Words:
    """Numbered prompts, and grey images for them."""

    name: str
    evaluation_prompts: int
    calibration_prompts: int
    seed: int
    calibration_seed: int | None
    noun: str

    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        return {
            "evaluation": self._of("large", self.evaluation_prompts),
            "calibration": self._of("small", self.calibration_prompts),
        }

    def _of(self, size: str, count: int) -> tuple[Prompt, ...]:
        return tuple(Prompt(id=f"{size}{i}", text=f"{size} {self.noun} {i}") for i in range(count))

    def has_images(self) -> bool:
        return True

    def image_files(self, prompts: Sequence[Prompt]) -> Mapping[str, PictureFile]:
        return {}

    def write_true_images(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        for number, prompt in enumerate(prompts):
            write_png(folder / f"{prompt.id}.png", np.full((16, 16, 3), 9 * number, np.uint8))
'''
DATASET_YAML = """_target_: words.Words
name: words
evaluation_prompts: 6
calibration_prompts: 4
seed: 0
calibration_seed: null
noun: circle
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder that the docs describe, and a data set in it."""
    before, section = PAGE.split(SECTION, 1)
    code = re.findall(r"```python\n(.*?)```", before.split("## Adding a method", 1)[1], re.S)
    yaml = re.search(r"```yaml\n# (\S+)\n(.*?)```", section, re.S)
    metric = re.search(r"```python\n# (\S+)\n(.*?)```", section, re.S)
    assert yaml is not None
    assert metric is not None
    files = {
        "my/mine.py": code[0],
        yaml.group(1): yaml.group(2),
        metric.group(1): metric.group(2),
        "my/words.py": DATASET,
        "my/conf/dataset/words.yaml": DATASET_YAML,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def _segbench(folder: Path, *arguments: str) -> Any:
    """The command in a process of its own; its answer, which is JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_folder_of_the_docs_is_read(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    try:
        use_config_dirs([Path("my/conf")])
        command = re.search(r"```sh\nsegbench run -m (.*?) --config-dir my/conf\n", PAGE)
        assert command is not None
        cells = read_request(command.group(1).split(), multirun=True).cells
        assert {cell.method_name for cell in cells} == {"rtn", "mine"}
        (row,) = describe_methods(["mine"])
        assert row["class"] == "mine.Mine"
    finally:
        use_config_dirs([])


def test_the_command_lists_it(mine: Path) -> None:
    (row,) = _segbench(mine, "methods", "mine", "--config-dir", "my/conf")
    assert row["class"] == "mine.Mine"
    plan = _segbench(mine, "run", "--config-dir", "my/conf", "method=mine", "--dry-run")
    assert [cell["method"] for cell in plan["cells"]] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "local_parallel"])
def test_a_cell_of_it_runs_here_and_in_a_job(
    mine: Path, small: Callable[..., list[str]], cluster: str
) -> None:
    arguments = small("tiny_mmdit", "method=mine", "dataset=words", f"cluster={cluster}")
    more = ["--follow"] if cluster == "local_parallel" else []
    _segbench(mine, "run", *arguments, "--config-dir", "my/conf", *more)
    (path,) = (mine / "runs" / "cells").glob("*/record.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["method"], record["dataset"]) == ("ok", "mine", "words")
    assert record["protocol"]["method"]["class"] == "mine.Mine"
    assert record["settings"] == {}


@pytest.mark.slow
def test_a_metric_of_it_is_measured_on_images_that_are_there(
    mine: Path, small: Callable[..., list[str]]
) -> None:
    arguments = small("tiny_mmdit", "method=mine", "dataset=words", "--config-dir", "my/conf")
    _segbench(mine, "run", *arguments)
    command = re.search(r"```sh\nsegbench evaluate demo (.*?) --config-dir my/conf\n", PAGE)
    assert command is not None
    (record,) = _segbench(mine, "evaluate", "-m", *arguments, *command.group(1).split())
    assert record["metrics"]["sharpness"]["n"] == 6
    assert 0 < record["metrics"]["sharpness"]["value"] < 1
