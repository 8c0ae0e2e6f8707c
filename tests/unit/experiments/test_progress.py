"""Progress: one line on a terminal, silence elsewhere, and an estimate that adds up."""

from __future__ import annotations

import io

import pytest

from experiments.cell import progress as module
from experiments.cell.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_terminal_sees_cell_stage_and_time_left(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress(cells=3, prompts=100, stream=stream)
    progress.cell("tiny rtn w8a8")
    done = progress.part("images")
    clock[0] = 10.0
    done(20)
    assert progress.left() == pytest.approx(40.0)
    assert "[1/3] tiny rtn w8a8: images 20, about 40 s left" in stream.getvalue()


def test_what_is_no_terminal_sees_only_notes(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(cells=1, prompts=10, stream=stream)
    done = progress.part("images")
    clock[0] = 1.0
    done(5)
    assert stream.getvalue() == ""
    progress.note("cell: ok")
    assert stream.getvalue() == "cell: ok\n"


def test_nothing_is_estimated_before_something_is_measured() -> None:
    assert Progress(cells=1, prompts=10, stream=io.StringIO()).left() is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
