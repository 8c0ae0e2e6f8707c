"""Jobs through submitit: job arrays on a Slurm cluster, or processes of this machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from slurm.arrays import Array, Job, plan_arrays
from slurm.ledger import Ledger
from slurm.queue import SlurmError, max_array_size
from slurm.resume import Resumable
from slurm.settings import JobSettings

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_CARRIED = ("SEGBENCH_CONFIG_DIRS",)  # variables that a job needs as this process has them
_PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `error` is empty when it went well."""

    index: int
    result: Any
    error: str


@dataclass(frozen=True)
class Submitted:
    """An array that is in the queue."""

    job: str
    array: Array
    folder: Path


# Slurm -----------------------------------------------------------------------------------------


def submit_arrays(
    jobs: Sequence[Job], *, folder: Path, name: str, ledger: Ledger, running: dict[str, str]
) -> Iterator[Submitted]:
    """Submits jobs as arrays and yields each as it enters the queue.

    Args:
        folder: of the jobs' pickles and logs; every node sees it.
        running: items that jobs submitted earlier are making, and those jobs.

    Raises:
        SlurmError: sbatch refused; what was submitted before stays.
    """
    arrays = plan_arrays(jobs, max_array_size=max_array_size())
    made: list[Submitted] = []
    home = dict(running)
    for array in arrays:
        token = f"{name}-{array.stage}-{uuid.uuid4().hex[:12]}"
        ledger.intend(token, [job.items for job in array.jobs], stage=array.stage)
        executor = _slurm_executor(
            array, folder=folder / token, name=token, dependency=_dependency(array, made, home)
        )
        try:
            # submitit prints what sbatch complains of; it is told once, in one line
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():
                handles = [executor.submit(Resumable(job.work)) for job in array.jobs]
        except submitit.core.utils.FailedJobError as error:
            raise SlurmError(f"sbatch refused: {_reason(error)}") from error
        job = handles[0].job_id.partition("_")[0]
        ledger.confirm(token, job, folder=folder / token)
        home |= {
            item: handle.job_id
            for handle, member in zip(handles, array.jobs, strict=True)
            for item in member.items
        }
        made.append(Submitted(job, array, folder / token))
        yield made[-1]


def _dependency(array: Array, made: Sequence[Submitted], home: dict[str, str]) -> str:
    parts = []
    after = sorted({home[item] for item in array.after if item in home})
    if after:
        parts.append("afterok:" + ":".join(after))
    if array.paired is not None:
        kind = "aftercorr" if len(array.jobs) > 1 else "afterok"
        parts.append(f"{kind}:{made[array.paired].job}")
    if array.behind is not None:
        parts.append(f"afterany:{made[array.behind].job}")
    return ",".join(parts)


def sbatch_text(array: Array, *, folder: Path, name: str, dependency: str) -> str:
    """The script that sbatch gets for an array."""
    executor = _slurm_executor(array, folder=folder, name=name, dependency=dependency)
    if len(array.jobs) > 1:
        executor.parameters["map_count"] = len(array.jobs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def preview(jobs: Sequence[Job], *, folder: Path, name: str) -> list[tuple[Array, str]]:
    """The arrays that would be submitted here and now, each with its script."""
    described = []
    try:
        size = max_array_size()
    except SlurmError as error:  # planned on a machine without the cluster
        log.warning("%s; arrays are shown as Slurm's default limit splits them", error)
        size = 1000
    arrays = plan_arrays(jobs, max_array_size=size)
    for array in arrays:
        parts = [f"afterok:<{item}>" for item in array.after]
        parts += [f"aftercorr:<array {array.paired}>"] if array.paired is not None else []
        parts += [f"afterany:<array {array.behind}>"] if array.behind is not None else []
        text = sbatch_text(array, folder=folder, name=name, dependency=",".join(parts))
        described.append((array, text))
    return described


def _slurm_executor(
    array: Array, *, folder: Path, name: str, dependency: str
) -> submitit.SlurmExecutor:
    """submitit's executor of an array; its pickles and logs go to `folder`.

    Raises:
        SlurmError: there is no Slurm on this machine.
    """
    settings = array.settings
    executor = _new_slurm_executor(settings, folder=folder)
    options = {
        "requeue": True,
        "signal": f"{settings.signal}@{settings.signal_seconds}",
        **({"kill-on-invalid-dep": "yes"} if dependency else {}),
        **({"gpus-per-node": settings.gpus} if settings.gpus else {}),
        **settings.options,
    }
    parameters: dict[str, Any] = {
        "job_name": name,
        "time": settings.timeout_minutes,
        "cpus_per_task": settings.cpus,
        "mem": f"{settings.memory_gb}GB",
        "array_parallelism": array.parallel,
        "setup": _setup(settings),
        # since 22.05 srun no longer inherits the number of CPUs
        "srun_args": [f"--cpus-per-task={settings.cpus}"],
        "stderr_to_stdout": True,  # one log a job
        "additional_parameters": options,
        "dependency": dependency or None,
    }
    for key in ("partition", "account", "qos", "constraint"):
        parameters[key] = getattr(settings, key)
    executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
    return executor


def _new_slurm_executor(settings: JobSettings, *, folder: Path) -> submitit.SlurmExecutor:
    try:
        return submitit.SlurmExecutor(
            folder, max_num_timeout=settings.max_requeues, python=settings.python
        )
    except RuntimeError as error:
        raise SlurmError(
            f"executor={settings.executor}: {error}; submit from a login node, or use "
            "executor=local"
        ) from error


def _setup(settings: JobSettings) -> list[str]:
    """Shell lines before the job: the site's own, then the code that submitted, then variables."""
    exports = [f"export {k}={shlex.quote(v)}" for k, v in _variables(settings).items()]
    return [*settings.setup, *exports]


def _variables(settings: JobSettings) -> dict[str, str]:
    given = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": str(_PROJECT) + (f":{given}" if given else ""),
        "SUBMITIT_PREEMPT_SIGNAL": settings.signal,
        **{name: os.environ[name] for name in _CARRIED if name in os.environ},
        **settings.environment,
    }


# this machine ----------------------------------------------------------------------------------


def run_local(jobs: Sequence[Job], *, folder: Path, gpus: int = 0) -> Iterator[Outcome]:
    """Runs jobs as processes, at most `parallel` at a time, and yields each as it ends.

    A job waits for the items it names; when one of those failed, it fails unrun. A job that raises,
    or whose process dies, is an outcome with an error; the others go on. With GPUs, each of the
    `parallel` places has its own, or those of this machine in turn where there are fewer.

    Args:
        gpus: how many this process sees; 0 if that is not known.
    """
    waiting = list(enumerate(jobs))
    running: dict[int, tuple[submitit.Job[Any], int]] = {}  # index -> job and its place
    asked = {item for job in jobs for item in job.items}
    made: set[str] = set()
    failed: dict[str, str] = {}  # item -> why
    places = list(range(jobs[0].settings.parallel)) if jobs else []
    while waiting or running:
        for entry in list(waiting):
            index, job = entry
            needed = {*job.after, job.follows}
            lacking = sorted(needed & failed.keys())
            if lacking:
                waiting.remove(entry)
                reason = failed[lacking[0]]
                failed |= dict.fromkeys(job.items, reason)
                yield Outcome(index, None, f"not run: what it needs failed ({reason})")
            elif not needed & (asked - made) and places:
                waiting.remove(entry)
                place = places.pop(0)
                running[index] = (_start(job, folder=folder, place=place, gpus=gpus), place)
        for index in [i for i, (handle, _) in running.items() if handle.done()]:
            handle, place = running.pop(index)
            places.append(place)
            outcome = _outcome(index, handle)
            if outcome.error:
                reason = f"{jobs[index].label}: {outcome.error}"
                failed |= dict.fromkeys(jobs[index].items, reason)
            else:
                made.update(jobs[index].items)
            yield outcome
        time.sleep(_POLL_SECONDS)


def gpus_of(place: int, *, each: int, gpus: int) -> list[int]:
    """The numbers of a place's GPUs, of those that this process may use."""
    wanted = range(place * each, (place + 1) * each)
    visible = [int(n) for n in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if n.isdigit()]
    numbers = visible or list(range(gpus))
    return [numbers[n % len(numbers)] for n in wanted] if numbers else list(wanted)


def _start(job: Job, *, folder: Path, place: int, gpus: int) -> submitit.Job[Any]:
    settings = job.settings
    python = settings.python or shlex.quote(sys.executable)
    variables = [f"{key}={value}" for key, value in _variables(settings).items()]
    executor = submitit.LocalExecutor(
        folder / "%j",
        max_num_timeout=settings.max_requeues,
        python=f"env {shlex.join(variables)} {python}",
    )
    executor.update_parameters(
        timeout_min=settings.timeout_minutes,
        signal_delay_s=settings.signal_seconds,
        gpus_per_node=settings.gpus,
        visible_gpus=gpus_of(place, each=settings.gpus, gpus=gpus),
        setup=settings.setup,
    )
    return executor.submit(Resumable(job.work))


def _outcome(index: int, job: submitit.Job[Any]) -> Outcome:
    try:
        return Outcome(index, job.result(), "")
    except Exception as error:  # of the job, whatever it was
        reason = _reason(error)
        log.info("job %s: %s (log: %s)", job.job_id, reason, job.paths.stderr)
        return Outcome(index, None, reason)


def _reason(error: Exception) -> str:
    """The job's own last line where submitit quotes its trace between rules, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    rules = [index for index, line in enumerate(lines) if set(line) == {"-"}]
    if len(rules) >= 2:
        return lines[rules[-1] - 1]
    return lines[0] if lines else type(error).__name__
