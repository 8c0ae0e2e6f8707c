"""Jobs and how they become job arrays; nothing here talks to a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slurm.settings import JobSettings


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for one job. `items` names what it makes; another job waits for items by name."""

    items: tuple[str, ...]
    work: Callable[[], Any]
    settings: JobSettings
    stage: str  # jobs of one stage share an array
    label: str
    after: tuple[str, ...] = ()  # items that must be there first
    follows: str = ""  # an item: this job comes after that job alone, one to one
    minutes: float | None = None  # how long it may take, if that is known


@dataclass(frozen=True, kw_only=True)
class Array:
    """Jobs that are submitted at once."""

    jobs: tuple[Job, ...]
    parallel: int
    after: tuple[str, ...] = ()  # items that must be there first
    paired: int | None = None  # index of the array whose k-th job the k-th job here waits for
    behind: int | None = None  # index of an array that must be over first, however it ended

    @property
    def settings(self) -> JobSettings:
        return self.jobs[0].settings

    @property
    def stage(self) -> str:
        return self.jobs[0].stage


def plan_arrays(jobs: Sequence[Job], *, max_array_size: int) -> list[Array]:
    """Groups jobs into arrays; an array's dependencies come before it.

    Jobs of one array have the same stage, resources and dependencies. An array has at most
    `max_array_size` jobs. Together the arrays of a stage run at most `parallel` jobs at a time.
    """
    arrays: list[Array] = []
    home: dict[str, int] = {}  # item -> index of its array
    stages = list(dict.fromkeys(job.stage for job in jobs))
    for stage in stages:
        groups: dict[Any, list[Job]] = {}
        for job in (job for job in jobs if job.stage == stage):
            leader = home.get(job.follows, -1)
            key = (repr(job.settings), job.after, leader)
            groups.setdefault(key, []).append(job)
        made = []
        for (_, after, leader), members in groups.items():
            paired = leader if leader >= 0 else None
            if paired is not None:
                assert [job.follows for job in members] == [
                    job.items[0] for job in arrays[paired].jobs
                ], "jobs that follow others follow every one of them, in order"
            made += [
                Array(
                    jobs=tuple(members[start : start + max_array_size]),
                    parallel=members[0].settings.parallel,
                    after=after,
                    paired=paired,
                )
                for start in range(0, len(members), max_array_size)
            ]
        for array in _limited(made, first=len(arrays)):
            home |= {item: len(arrays) for job in array.jobs for item in job.items}
            arrays.append(array)
    return arrays


def _limited(arrays: Sequence[Array], *, first: int) -> list[Array]:
    """Shares `parallel` among the arrays of a stage.

    With more arrays than that, they queue in as many lanes, each behind the one before it.
    """
    if not arrays:
        return []
    parallel = arrays[0].settings.parallel
    lanes = min(len(arrays), parallel)
    limited = []
    for index, array in enumerate(arrays):
        share = parallel // lanes + (index % lanes < parallel % lanes)
        behind = first + index - lanes if index >= lanes else None
        limited.append(replace(array, parallel=share, behind=behind))
    return limited
