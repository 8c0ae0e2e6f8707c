"""The list of methods is there at once, and never an old one."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.verbs import methods

ASK = """
import argparse, sys
from experiments.verbs import methods
answer = methods.run(argparse.Namespace(overrides=[]))
print(len(answer.data), "torch" in sys.modules)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "segbench" / "methods.json"


def asked(*names: str) -> str:
    return methods.run(argparse.Namespace(overrides=list(names))).text


def test_the_second_answer_is_the_first_without_torch(cache: Path) -> None:
    first = asked()
    assert cache.is_file()
    assert asked() == first
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, env=os.environ
    )
    count, torch_was_loaded = done.stdout.split()
    assert int(count) > 20
    assert torch_was_loaded == "False"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": 1}', "\x00\x01", '{"answer": {"text": "x"}}']
)
def test_a_damaged_cache_is_made_again(cache: Path, content: str) -> None:
    first = asked("rtn")
    cache.write_text(content)
    assert asked("rtn") == first
    whole = cache.read_text()
    cache.write_text(whole.replace("rtn", "gptq", 1))
    assert asked("rtn") == first


def test_what_a_package_puts_on_the_path_is_no_other_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As setuptools does with what it carries along."""
    before = methods._key([])
    carried = tmp_path / "carried" / "thing-1.0.dist-info"
    carried.mkdir(parents=True)
    (carried / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(carried.parent))
    assert methods._key([]) == before


def test_a_cache_that_cannot_be_written_costs_no_answer(cache: Path) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where a folder should be")
    assert "rtn" in asked("rtn")


def test_a_changed_file_is_another_answer(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "my" / "conf" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# said once\n_target_: baselines.rtn.RoundToNearest\n")
    monkeypatch.setenv("SEGBENCH_CONFIG_DIRS", str(own.parent))
    keys = {methods._key([])}
    (own / "mine.yaml").write_text("# said twice\n_target_: baselines.rtn.RoundToNearest\n")
    keys.add(methods._key([]))
    (own.parent.parent / "mine.py").write_text("x = 1\n")
    keys.add(methods._key([]))
    keys.add(methods._key(["rtn"]))
    assert len(keys) == 4
