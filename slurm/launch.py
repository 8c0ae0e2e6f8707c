"""Jobs through submitit: one callable a job, on this machine's processes or on a Slurm cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from slurm.settings import JobSettings

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is empty when it went well."""

    index: int
    result: Any
    error: str


def make_executor(settings: JobSettings, *, folder: Path, name: str) -> submitit.AutoExecutor:
    """A submitit executor whose logs and pickles lie in `folder`.

    Raises:
        ValueError: Slurm was asked for and is not on this machine.
    """
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=settings.executor)
    except RuntimeError as error:
        raise ValueError(f"executor={settings.executor}: {error}; use executor=local") from error
    common = {
        "name": name,
        "timeout_min": settings.timeout_minutes,
        "cpus_per_task": settings.cpus,
        "mem_gb": settings.memory_gb,
        "gpus_per_node": settings.gpus,
    }
    if settings.executor == "local":
        executor.update_parameters(**{k: v for k, v in common.items() if k != "gpus_per_node"})
        return executor
    executor.update_parameters(
        **common,
        slurm_array_parallelism=settings.parallel,
        slurm_setup=settings.setup,
        # since 22.05 srun no longer inherits the number of CPUs
        slurm_srun_args=[f"--cpus-per-task={settings.cpus}"],
        **{
            f"slurm_{key}": value
            for key in ("partition", "account", "qos")
            if (value := getattr(settings, key)) is not None
        },
    )
    return executor


def run_jobs(
    tasks: Sequence[Callable[[], Any]], *, settings: JobSettings, folder: Path, name: str
) -> Iterator[Outcome]:
    """Submits all tasks, at most `parallel` at a time, and yields each as it ends.

    A task that raises, or whose process dies, is an outcome with an error; the others go on.
    """
    executor = make_executor(settings, folder=folder, name=name)
    waiting = list(enumerate(tasks))
    running: dict[int, submitit.Job[Any]] = {}
    if settings.executor == "slurm":  # the scheduler itself limits an array
        with executor.batch():
            running = {index: executor.submit(task) for index, task in waiting}
        waiting = []
    while waiting or running:
        while waiting and len(running) < settings.parallel:
            index, task = waiting.pop(0)
            running[index] = executor.submit(task)
        for index in [i for i, job in running.items() if job.done()]:
            yield _outcome(index, running.pop(index))
        time.sleep(_POLL_SECONDS)


def _outcome(index: int, job: submitit.Job[Any]) -> Outcome:
    try:
        return Outcome(index, job.result(), "")
    except Exception as error:  # of the job, whatever it was
        reason = _reason(error)
        log.warning("job %s: %s (log: %s)", job.job_id, reason, job.paths.stderr)
        return Outcome(index, None, reason)


def _reason(error: Exception) -> str:
    """The job's own last line where submitit quotes its trace between rules, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    rules = [index for index, line in enumerate(lines) if set(line) == {"-"}]
    if len(rules) >= 2:
        return lines[rules[-1] - 1]
    return lines[0] if lines else type(error).__name__
