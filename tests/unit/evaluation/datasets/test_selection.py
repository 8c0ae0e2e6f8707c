"""Subsets are chosen by stated rules, reproduced from the data set's own file, and disjoint."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from evaluation.datasets.interface import Prompt
from evaluation.datasets.loading import load_dataset
from evaluation.datasets.mjhq import Mjhq
from evaluation.datasets.partiprompts import PartiPrompts
from evaluation.datasets.selection import calibration_ids, select_ids
from evaluation.datasets.subset import main
from tests.unit.evaluation.datasets import layouts

IDS = [f"{(7919 * n) % 1000:03d}ab" for n in range(40)]


def chosen_by_deepcompressor(names: list[str], size: int) -> list[str]:
    """Transcribed: its loader of MJHQ shuffles the file's keys with seed 0, cuts, then sorts."""
    names = list(names)
    random.Random(0).shuffle(names)
    return sorted(names[:size])


def mjhq(root: Path, **settings: object) -> Mjhq:
    given = {"evaluation_prompts": 8, "calibration_prompts": 8, "selection": "deepcompressor"}
    return Mjhq(name="mjhq", root=str(root), **{**given, **settings})  # type: ignore[arg-type]


def ids(prompts: tuple[Prompt, ...]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_the_rules() -> None:
    assert select_ids(IDS, selection="first", count=3, seed=5) == IDS[:3]
    expected = chosen_by_deepcompressor(IDS, 7)
    assert select_ids(IDS, selection="deepcompressor", count=7, seed=5) == expected
    assert select_ids(IDS, selection="random", count=7, seed=0) == expected
    assert select_ids(IDS, selection="random", count=7, seed=5) != expected
    assert select_ids(IDS, selection="list", count=1, seed=0, listed=IDS[4:6]) == IDS[4:5]


def test_smaller_subsets_are_not_cut_from_the_sorted_larger_one() -> None:
    """The cut is made before sorting: each subset holds all that a smaller one does."""
    small, large = (select_ids(IDS, selection="deepcompressor", count=n, seed=0) for n in (5, 20))
    assert set(small) < set(large)
    assert small != large[:5]


def test_deepcompressors_choice_is_had_again_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = layouts.write_mjhq(tmp_path / "mjhq", count=40)
    out = tmp_path / "lists"
    assert main(["mjhq", str(root), "--count", "20", "5", "--out", str(out)]) == 0
    keys = list(json.loads((root / "meta_data.json").read_text()))
    printed = capsys.readouterr().out.splitlines()
    for count, line in zip((20, 5), printed, strict=True):
        path = out / f"mjhq_deepcompressor_{count}.txt"
        assert path.read_text().split() == chosen_by_deepcompressor(keys, count)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert line == f"{path} sha256 {sha256}"
    listed = mjhq(
        root,
        selection="list",
        ids=str(out / "mjhq_deepcompressor_20.txt"),
        ids_sha256=printed[0].split()[-1],
        evaluation_prompts=20,
    )
    by_rule = mjhq(root, evaluation_prompts=20)
    assert listed.prompts() == by_rule.prompts()
    listed.ids_sha256 = "0" * 64
    with pytest.raises(ValueError, match=r"20\.txt: sha256 is .*, dataset\.ids_sha256 says 000"):
        listed.prompts()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mjhq", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'meta_data.json'}: no such file; dataset.root is")
    assert said.count("\n") == 1
    root = layouts.write_mjhq(tmp_path / "mjhq")
    assert main(["mjhq", str(root), "--count", "13"]) == 2
    assert "the data set has 12 prompts; dataset.evaluation_prompts asks for 13" in (
        capsys.readouterr().err
    )


def test_a_list_of_another_data_set_is_refused(tmp_path: Path) -> None:
    root = layouts.write_mjhq(tmp_path)
    (tmp_path / "ids.txt").write_text("919ab\nnone\n")
    config = mjhq(root, selection="list", ids=str(tmp_path / "ids.txt"), evaluation_prompts=1)
    with pytest.raises(ValueError, match="1 of 2 ids are not in the data set, 'none' among them"):
        config.prompts()
    (tmp_path / "ids.txt").write_text("919ab\n919ab\n")
    with pytest.raises(ValueError, match="'919ab' is there twice"):
        config.prompts()
    (tmp_path / "ids.txt").write_text("919ab\n")
    config.evaluation_prompts = 2
    with pytest.raises(ValueError, match="the list of ids holds 1 prompts"):
        config.prompts()


@pytest.mark.parametrize("selection", ["first", "random", "deepcompressor"])
def test_calibration_is_disjoint_and_drawn_by_its_seed(selection: str, tmp_path: Path) -> None:
    root = layouts.write_mjhq(tmp_path, count=40)
    drawn = [load_dataset(mjhq(root, selection=selection, calibration_seed=n)) for n in range(5)]
    for dataset in drawn:
        assert not set(ids(dataset.evaluation)) & set(ids(dataset.calibration))
        assert dataset.evaluation == drawn[0].evaluation
    assert len({dataset.calibration for dataset in drawn}) == 5


def test_more_evaluation_prompts_leave_the_calibration_nearly_as_it_is() -> None:
    texts = {name: f"text {name}" for name in IDS}
    small, large = (
        calibration_ids(IDS, evaluated=IDS[:n], text_of=texts.__getitem__, count=5, seed=3)
        for n in (4, 12)
    )
    assert [name for name in small if name not in IDS[:12]] == [n for n in large if n in small]


def test_a_text_that_is_there_twice_is_in_one_split_alone(tmp_path: Path) -> None:
    """A list may repeat a prompt; with one in each split a run would be refused."""
    root = layouts.write_partiprompts(tmp_path)
    given = {"name": "p", "root": str(root), "evaluation_prompts": 5}
    config = PartiPrompts(**given, calibration_prompts=7)  # type: ignore[arg-type]
    assert "00012" not in ids(load_dataset(config).calibration)  # the text of 00004
    config.calibration_prompts = 8
    with pytest.raises(ValueError, match="7 prompts are left to calibrate with beside 5 that are"):
        config.prompts()


def test_calibration_prompts_may_come_from_another_list(tmp_path: Path) -> None:
    root = layouts.write_mjhq(tmp_path)
    (tmp_path / "others.txt").write_text("a red circle 0\n" + "a blue boat\na green tree\n")
    other = {"calibration_path": str(tmp_path / "others.txt"), "calibration_prompts": 2}
    dataset = load_dataset(mjhq(root, selection="first", evaluation_prompts=12, **other))
    assert {prompt.text for prompt in dataset.calibration} == {"a blue boat", "a green tree"}
    assert {prompt.id for prompt in dataset.calibration} == {"other-00001", "other-00002"}
    with pytest.raises(ValueError, match="2 prompts are left to calibrate with"):
        mjhq(root, evaluation_prompts=12, **{**other, "calibration_prompts": 3}).prompts()
