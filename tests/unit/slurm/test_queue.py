"""What is concluded from what Slurm's commands print; no Slurm is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slurm import queue
from slurm.queue import JobState, SlurmError

Say = Callable[..., list[list[str]]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Every command answers with these; returns the list of commands that were called."""

    def answer(out: str = "", *, error: str = "", status: int = 0) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
            calls.append(list(command))
            return subprocess.CompletedProcess(command, status, out, error)

        monkeypatch.setattr(queue.subprocess, "run", run)
        return calls

    return answer


def test_squeue_is_asked_once_for_all_jobs(say: Say) -> None:
    calls = say("12_0|RUNNING|None|node1\n12_1|PENDING|Dependency|\n13|COMPLETED|None|node1\n")
    states = queue.queue_states(["12_0", "12_1", "13"])
    assert states["12_0"] == JobState("RUNNING", "None", "node1")
    assert [state.alive for state in states.values()] == [True, True, False]
    assert len(calls) == 1
    assert calls[0][-1] == "12,13"


def test_nothing_is_asked_for_nothing(say: Say) -> None:
    calls = say("")
    assert queue.queue_states([]) == {}
    assert calls == []


def test_jobs_that_left_the_queue_long_ago_are_no_error(say: Say) -> None:
    say(error="slurm_load_jobs error: Invalid job id specified", status=1)
    assert queue.queue_states(["3"]) == {}


def test_a_controller_that_is_down_is_no_empty_queue(say: Say) -> None:
    say(error="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    with pytest.raises(SlurmError, match="Unable to contact"):
        queue.queue_states(["3"])


def test_no_accounting_is_no_error(say: Say) -> None:
    say(error="Slurm accounting storage is disabled", status=1)
    assert queue.final_states(["3"]) == {}


def test_accounting_says_how_a_job_ended(say: Say) -> None:
    say("3_0|CANCELLED by 0|0:15|node1\n3_1|TIMEOUT|0:0|node1\n")
    assert {job: s.state for job, s in queue.final_states(["3_0"]).items()} == {
        "3_0": "CANCELLED",
        "3_1": "TIMEOUT",
    }


@pytest.mark.parametrize(
    "state", ["REQUEUED", "PREEMPTED", "COMPLETING", "SUSPENDED", "REQUEUE_HOLD", "CONFIGURING"]
)
def test_what_may_run_again_is_alive(state: str) -> None:
    assert JobState(state).alive


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "FAILED"])
def test_what_is_over_is_not(state: str) -> None:
    assert not JobState(state).alive


def test_the_limit_of_an_array_caps_the_highest_index(say: Say) -> None:
    say("MaxArraySize            = 1001\nMaxJobCount = 10000\n")
    assert queue.max_array_size() == 1000


def test_no_slurm_here_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="squeue is not on this machine"):
        queue.queue_states(["3"])
