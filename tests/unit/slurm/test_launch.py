"""Jobs through submitit on this machine's processes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from slurm.launch import make_executor, run_jobs
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


def test_every_task_has_an_outcome_and_a_failure_is_its_own(tmp_path: Path) -> None:
    tasks = [functools.partial(pow, base, 2) for base in (1, 2)]
    tasks += [functools.partial(int, "cursed"), functools.partial(os._exit, 9)]
    outcomes = {o.index: o for o in run_jobs(tasks, settings=settings(), folder=tmp_path, name="t")}
    assert {index: outcome.result for index, outcome in outcomes.items()} == {
        0: 1,
        1: 4,
        2: None,
        3: None,
    }
    assert "cursed" in outcomes[2].error
    assert outcomes[3].error


def test_slurm_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="executor=local"):
        make_executor(settings(executor="slurm"), folder=tmp_path, name="t")


@pytest.mark.parametrize("wrong", [{"executor": "pbs"}, {"parallel": 0}, {"memory_gb": 0}])
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
