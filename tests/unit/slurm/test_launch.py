"""Jobs through submitit on this machine's processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.arrays import Job
from slurm.launch import gpus_of, preview, run_local
from slurm.queue import SlurmError
from slurm.settings import JobSettings


def settings(**changes: object) -> JobSettings:
    given = {
        "executor": "local",
        "parallel": 2,
        "timeout_minutes": 5,
        "cpus": 1,
        "memory_gb": 1,
        "gpus": 0,
    }
    return JobSettings(**{**given, **changes})  # type: ignore[arg-type]


def job(name: str, work: Callable[[], object], **changes: Any) -> Job:
    given: dict[str, Any] = {"settings": settings(), "stage": "cell", "label": name}
    return Job(items=(name,), work=work, **{**given, **changes})


def test_every_job_has_an_outcome_and_a_failure_is_its_own(tmp_path: Path) -> None:
    jobs = [job(f"{base}", functools.partial(pow, base, 2)) for base in (1, 2)]
    jobs.append(job("cursed", functools.partial(int, "cursed")))
    jobs.append(job("dies", functools.partial(os._exit, 9)))
    outcomes = {o.index: o for o in run_local(jobs, folder=tmp_path)}
    results = {index: outcome.result for index, outcome in outcomes.items()}
    assert results == {0: 1, 1: 4, 2: None, 3: None}
    assert "cursed" in outcomes[2].error
    assert outcomes[3].error


def test_a_job_waits_for_what_it_needs_and_is_not_run_without(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    jobs = [
        job("late", functools.partial(os.stat, seen), after=("early",), stage="cell"),
        job("early", functools.partial(os.mkdir, seen), stage="reference"),
        job("broken", functools.partial(int, "no"), stage="reference"),
        job("never", functools.partial(os.mkdir, tmp_path / "never"), after=("broken",)),
        job("last", functools.partial(os.mkdir, tmp_path / "last"), follows="never"),
    ]
    outcomes = {o.index: o for o in run_local(jobs, folder=tmp_path / "jobs")}
    assert not outcomes[0].error
    assert "what it needs failed (broken: " in outcomes[3].error
    assert "what it needs failed" in outcomes[4].error
    assert not (tmp_path / "never").exists()


def test_each_place_has_its_own_gpu_and_the_variables_are_set(tmp_path: Path) -> None:
    asked = settings(gpus=1, environment={"HF_HUB_OFFLINE": "1"})
    jobs = [job(f"{i}", variables, settings=asked) for i in range(2)]
    results = sorted(o.result for o in run_local(jobs, folder=tmp_path))
    assert results == [("0", "1"), ("1", "1")]


@pytest.mark.parametrize(
    ("each", "gpus", "visible", "expected"),
    [
        (1, 2, None, [[0], [1], [0], [1]]),
        (2, 4, None, [[0, 1], [2, 3], [0, 1], [2, 3]]),
        (1, 2, "3,5", [[3], [5], [3], [5]]),
        (1, 0, None, [[0], [1], [2], [3]]),
        (0, 2, None, [[], [], [], []]),
    ],
)
def test_places_take_the_gpus_that_there_are_in_turn(
    monkeypatch: pytest.MonkeyPatch,
    each: int,
    gpus: int,
    visible: str | None,
    expected: list[list[int]],
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpus_of(place, each=each, gpus=gpus) for place in range(4)] == expected


def variables() -> tuple[str | None, str | None]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("HF_HUB_OFFLINE")


def test_slurm_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    jobs = [job("a", os.getpid, settings=settings(executor="slurm"))]
    with pytest.raises(SlurmError, match="executor=local"):
        preview(jobs, folder=tmp_path, name="t")


@pytest.mark.parametrize(
    "wrong",
    [{"executor": "pbs"}, {"parallel": 0}, {"memory_gb": 0}, {"gpus": -1}, {"signal": "USR9"}],
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
