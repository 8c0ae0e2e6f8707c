"""What lies in a folder of one's own is used like what lies in conf/."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.config.catalogue import describe_methods
from experiments.config.compose import build, build_cell, compose_config
from experiments.config.naming import changed_settings, names
from experiments.config.places import config_dirs, find_yaml, options, read_yaml, use_config_dirs
from experiments.config.request import read_request
from experiments.errors import UserError
from experiments.store.paths import CONF, ROOT
from experiments.verbs.models import describe_models

METHOD = '''
from dataclasses import dataclass
from baselines.rtn import RoundToNearest

@dataclass(kw_only=True)
class Mine(RoundToNearest):
    """One line of mine."""

    strength: float = 0.3
'''
DATASET = '''
from dataclasses import dataclass
from evaluation.datasets.shapes import Shapes

@dataclass(kw_only=True)
class Scenes(Shapes):
    """Shapes under another name."""

    scale: float

@dataclass(kw_only=True)
class Half:
    name: str
'''
FILES = {
    "conf/method/mine.yaml": "# What mine is.\n_target_: {own}_method.Mine\nstrength: 0.3\n",
    "conf/dataset/scenes.yaml": (
        "_target_: {own}_dataset.Scenes\nname: scenes\nevaluation_prompts: 4\n"
        "calibration_prompts: 2\nseed: 0\ncalibration_seed: null\nscale: 2.0\n"
    ),
    "conf/bits/w3a16_mine.yaml": "{bits}",
    "conf/model/mine.yaml": "{model}",
    "conf/experiment/mine_all.yaml": (
        "# @package _global_\ndefaults:\n  - override /dataset: scenes\n"
        "group: mine_all\nmodel:\n  batch_size: 2\n"
        "sweep:\n  - method: [rtn, mine]\n    bits: [w8a8_int8, w3a16_mine]\n"
    ),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SEGBENCH_CONFIG_DIRS", raising=False)
    yield
    use_config_dirs([])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A project of one's own: two modules and a folder of configs; names of its own per test."""
    name = f"own_{os.getpid()}_{abs(hash(str(tmp_path)))}"
    bits = (CONF / "bits/w8a16_int.yaml").read_text().replace("w8a16_int", "w3a16_mine")
    model = (CONF / "model/tiny_unet.yaml").read_text()
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        filled = text.replace("{own}", name).replace("{bits}", bits).replace("{model}", model)
        (tmp_path / path).write_text(filled)
    (tmp_path / f"{name}_method.py").write_text(METHOD)
    (tmp_path / f"{name}_dataset.py").write_text(DATASET)
    return tmp_path


def test_everything_of_ones_own_is_an_option(own: Path) -> None:
    use_config_dirs([own / "conf"])
    assert "mine" in options("method")
    assert find_yaml("method", "mine") == own / "conf/method/mine.yaml"
    assert read_yaml("method", "mine")["strength"] == 0.3
    cells = read_request(["+experiment=mine_all"], multirun=True).cells
    assert [(cell.method_name, cell.bits.name) for cell in cells] == [
        ("rtn", "w8a8_int8"),
        ("rtn", "w3a16_mine"),
        ("mine", "w8a8_int8"),
        ("mine", "w3a16_mine"),
    ]
    assert {cell.dataset.name for cell in cells} == {"scenes"}
    assert {cell.model.batch_size for cell in cells} == {2}
    assert type(cells[2].method).__name__ == "Mine"
    assert len(cells[0].dataset.prompts()["evaluation"]) == 4


def test_an_experiments_choice_says_which_fields_there_are(own: Path) -> None:
    path = own / "conf/experiment/mine_all.yaml"
    text = path.read_text().replace(
        "  - override /d", "  - override /method: mine\n  - override /d"
    )
    path.write_text(text.replace("method: [rtn, mine]\n    ", ""))
    use_config_dirs([own / "conf"])
    line = ["+experiment=mine_all", "dataset.scale=3", "method.strength=0.5"]
    cells = read_request(line, multirun=True).cells
    assert {cell.dataset.scale for cell in cells} == {3.0}  # type: ignore[attr-defined]
    assert {cell.method_name for cell in cells} == {"mine"}
    assert {type(cell.method).__name__ for cell in cells} == {"Mine"}


def test_a_row_of_ones_own_is_named_by_its_own_yaml(own: Path) -> None:
    use_config_dirs([own / "conf"])
    (plain,) = read_request(["method=mine"], multirun=False).cells
    (changed,) = read_request(["method=mine", "method.strength=0.5"], multirun=False).cells
    assert changed_settings(plain) == {}
    assert names(changed)[1] == "mine strength=0.5"


def test_a_cell_of_ones_own_built_by_parts_is_the_one_built_whole(own: Path) -> None:
    use_config_dirs([own / "conf"])
    line = ["+experiment=mine_all", "method=mine", "bits=w3a16_mine", "model=mine"]
    assert build_cell(line, method_name="mine") == build(compose_config(line), method_name="mine")


def test_methods_and_models_list_ones_own(own: Path) -> None:
    use_config_dirs([own / "conf"])
    (row,) = describe_methods(["mine"])
    assert row["class"].endswith("_method.Mine")
    assert row["what"] == "One line of mine."
    assert row["yaml"] == "What mine is."
    assert "w3a16_mine" in row["bits"]
    assert "mine" in [model["model"] for model in describe_models()]


def test_forgotten_when_another_command_names_none(own: Path) -> None:
    use_config_dirs([own / "conf"])
    read_request(["method=mine"], multirun=False)
    assert os.environ["PYTHONPATH"].split(os.pathsep)[-1] == str(own)
    use_config_dirs([])
    assert config_dirs() == ()
    assert str(own) not in sys.path
    assert str(own) not in os.environ.get("PYTHONPATH", "")
    with pytest.raises(UserError, match="unknown method 'mine'"):
        read_request(["method=mine"], multirun=False)


def test_a_child_process_finds_it(own: Path, tmp_path: Path) -> None:
    use_config_dirs([own / "conf"])
    code = (
        "from experiments.config.request import read_request\n"
        "print(type(read_request(['method=mine'], multirun=False).cells[0].method).__name__)"
    )
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert answer.stdout.strip() == "Mine", answer.stderr


def test_an_edited_yaml_is_read_again(own: Path) -> None:
    use_config_dirs([own / "conf"])
    path = own / "conf/method/mine.yaml"
    assert read_yaml("method", "mine")["strength"] == 0.3
    path.write_text(path.read_text().replace("0.3", "0.4"))
    os.utime(path, ns=(1, 1))
    assert read_yaml("method", "mine")["strength"] == 0.4


def test_a_relative_path_is_one_from_here_or_from_the_project(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path_of(given: str) -> str:
        line = ["dataset=prompts", f"dataset.path={given}"]
        return build_cell(line, method_name="x").dataset.path  # type: ignore[attr-defined]

    monkeypatch.chdir(own)
    (own / "mine.jsonl").touch()
    assert path_of("mine.jsonl") == "mine.jsonl"
    assert path_of("conf/../README.md") == str(ROOT / "conf/../README.md")
    assert path_of("nowhere.jsonl") == "nowhere.jsonl"


def _rename(own: Path) -> Path:
    (own / "conf").rename(own / "methods_of_mine")
    (own / "methods_of_mine" / "method").rename(own / "methods_of_mine" / "methods")
    for name in ("dataset", "bits", "model", "experiment"):
        (own / "methods_of_mine" / name).rename(own / name)
    return own / "methods_of_mine"


def _taken(own: Path) -> Path:
    (own / "conf/method/mine.yaml").rename(own / "conf/method/rtn.yaml")
    return own / "conf"


def _base(own: Path) -> Path:
    (own / "conf/config.yaml").touch()
    return own / "conf"


def _hiding(own: Path) -> Path:
    (own / "evaluation").mkdir()
    return own / "conf"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda own: own / "nowhere", "nowhere: no such folder; give one with"),
        (_rename, r"holds none of the folders model, .*\(rename methods -> method\?\)"),
        (_taken, r"method=rtn is both conf/method/rtn\.yaml and .*rtn\.yaml; rename one"),
        (_base, r"its config\.yaml would be ignored"),
        (_hiding, "has the name of a package of the project"),
    ],
)
def test_a_folder_that_is_no_good_is_refused(
    own: Path, prepare: Callable[[Path], Path], said: str
) -> None:
    folder = prepare(own)
    with pytest.raises(UserError, match=said) as caught:
        use_config_dirs([folder])
    assert "\n" not in str(caught.value)
    assert config_dirs() == ()


def test_two_folders_with_one_name_are_refused(own: Path) -> None:
    second = own / "more/conf/method"
    second.mkdir(parents=True)
    (second / "mine.yaml").write_text("_target_: x.Y\n")
    with pytest.raises(UserError, match="method=mine is both"):
        use_config_dirs([own / "conf", second.parent])
    use_config_dirs([own / "conf", own / "conf"])


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("strength: 1\n", "method: its yaml has no _target_"),
        ("_target_: no_such.Mine\n", "'no_such.Mine' cannot be imported: No module"),
        ("_target_: {own}_broken.Mine\n", "cannot be imported: NameError: name 'torhc'"),
        ("_target_: {own}_method.Mine\nstrenght: 1\n", "strenght; did you mean method.strength"),
        ("- a\n", "is no list of keys and values"),
        ("a: [\n", r"mine\.yaml cannot be read"),
    ],
)
def test_a_method_of_ones_own_that_is_wrong(own: Path, yaml: str, said: str) -> None:
    name = next(own.glob("*_method.py")).stem.removesuffix("_method")
    (own / f"{name}_broken.py").write_text("torhc.nn\n")
    (own / "conf/method/mine.yaml").write_text(yaml.replace("{own}", name))
    use_config_dirs([own / "conf"])
    with pytest.raises(UserError, match=said) as caught:
        read_request(["method=mine"], multirun=False)
    assert "\n" not in str(caught.value)


def test_a_data_set_half_written_is_refused_with_what_it_lacks(own: Path) -> None:
    path = own / "conf/dataset/scenes.yaml"
    path.write_text(path.read_text().splitlines()[0].replace("Scenes", "Half") + "\nname: x\n")
    use_config_dirs([own / "conf"])
    with pytest.raises(UserError, match=r"Half has no evaluation_prompts, .*write_true_images"):
        read_request(["dataset=scenes"], multirun=False)
