"""The command line: one line for whatever happens, in whatever encoding."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import cli
from experiments.errors import UserError
from experiments.verbs.answer import Answer
from tests.conftest import Answer as Called

ROOT = Path(__file__).resolve().parents[3]


def _raises(error: Exception) -> Callable[..., Answer]:
    def run(_: object) -> Answer:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("a\nb"), 2, "segbench: a b\n"),
        (ZeroDivisionError("by\nzero"), 1, "segbench: ZeroDivisionError: by zero (--verbose show"),
        (RecursionError(), 1, "segbench: RecursionError: no reason given (--verbose shows where"),
    ],
)
def test_whatever_is_raised_is_one_line(
    error: Exception,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    segbench: Callable[..., Called],
) -> None:
    monkeypatch.setattr(cli, "_run", _raises(error))
    answer = segbench("models")
    assert answer.status == status
    assert answer.err.startswith(said)
    assert answer.err.count("\n") == 1


def test_verbose_shows_where(
    monkeypatch: pytest.MonkeyPatch, segbench: Callable[..., Called]
) -> None:
    monkeypatch.setattr(cli, "_run", _raises(ZeroDivisionError("by zero")))
    with pytest.raises(ZeroDivisionError):
        segbench("--verbose", "models")


def test_an_encoding_that_lacks_a_sign_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    monkeypatch.setattr(cli, "_run", lambda _: Answer("3.5 \u00b1 0.1 \u65e5 \ud800", {}))
    assert cli.main(["models"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"3.5 \\xb1 0.1 \\u65e5 \\ud800\n"


@pytest.mark.parametrize("verb", ["bench-kernels", "bench-model"])
def test_a_folder_that_cannot_be_made_is_known_before_the_measurement(
    verb: str, segbench: Callable[..., Called]
) -> None:
    answer = segbench(verb, "--small", "--out", "/proc/segbench/x")
    assert answer.status == 2
    assert "/proc/segbench/x: cannot write there" in answer.err
    assert answer.err.count("\n") == 1


def test_without_asserts_it_refuses_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-O", "-m", "experiments", "run", "seed=${nope}", f"out={tmp_path}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nope" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
