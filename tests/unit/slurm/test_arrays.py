"""How jobs become arrays."""

from __future__ import annotations

import os
from typing import Any

from slurm.arrays import Array, Job, plan_arrays
from slurm.settings import JobSettings


def job(name: str, stage: str = "cell", *, parallel: int = 4, **changes: Any) -> Job:
    settings = JobSettings(
        executor="slurm", parallel=parallel, timeout_minutes=5, cpus=1, memory_gb=1, gpus=0
    )
    return Job(items=(name,), work=os.getpid, settings=settings, stage=stage, label=name, **changes)


def names(array: Array) -> list[str]:
    return [item for job in array.jobs for item in job.items]


def test_shared_stages_come_first_and_cells_with_the_same_needs_share_an_array() -> None:
    jobs = [
        job("r", "reference"),
        job("c", "calibration"),
        job("fp", after=("r",)),
        job("x", after=("r", "c")),
        job("y", after=("r", "c")),
    ]
    arrays = plan_arrays(jobs, max_array_size=100)
    assert [names(array) for array in arrays] == [["r"], ["c"], ["fp"], ["x", "y"]]
    assert arrays[3].after == ("r", "c")


def test_arrays_are_split_where_the_cluster_says() -> None:
    arrays = plan_arrays([job(f"{i}", parallel=5) for i in range(7)], max_array_size=3)
    assert [len(array.jobs) for array in arrays] == [3, 3, 1]
    assert [array.parallel for array in arrays] == [2, 2, 1]
    assert {array.behind for array in arrays} == {None}


def test_more_arrays_than_jobs_at_a_time_queue_in_lanes() -> None:
    arrays = plan_arrays([job(f"{i}", parallel=2) for i in range(5)], max_array_size=1)
    assert [array.parallel for array in arrays] == [1] * 5
    assert [array.behind for array in arrays] == [None, None, 0, 1, 2]


def test_metrics_follow_their_cells_one_to_one() -> None:
    jobs = []
    for name in ("a", "b", "c"):
        jobs.append(job(f"{name}:images", after=("r",)))
        jobs.append(job(name, "metrics", follows=f"{name}:images"))
    arrays = plan_arrays(jobs, max_array_size=2)
    assert [names(array) for array in arrays] == [
        ["a:images", "b:images"],
        ["c:images"],
        ["a", "b"],
        ["c"],
    ]
    assert [array.paired for array in arrays] == [None, None, 0, 1]


def test_resources_of_their_own_mean_an_array_of_their_own() -> None:
    arrays = plan_arrays([job("a"), job("b", parallel=3), job("c")], max_array_size=10)
    assert [names(array) for array in arrays] == [["a", "c"], ["b"]]
