"""What the scheduler says: squeue always, sacct where there is accounting."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_TIMEOUT_SECONDS = 60
_DEFAULT_ARRAY_SIZE = 1001  # Slurm's own default of MaxArraySize
_OVER = {  # every other state may still become RUNNING
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
}


class SlurmError(ValueError):
    """Slurm refused, or did not answer; the message is one line for the user."""


@dataclass(frozen=True)
class JobState:
    """One line of squeue or sacct."""

    state: str  # PENDING, RUNNING, ... as Slurm spells it
    reason: str = ""
    node: str = ""

    @property
    def alive(self) -> bool:
        """Whether the job may still do something."""
        return self.state not in _OVER


def call(command: Sequence[str]) -> str:
    """The standard output of one of Slurm's commands.

    Raises:
        SlurmError: it is not installed, failed, or did not answer in a minute.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"{command[0]} is not on this machine; submit from a login node of the cluster, or "
            "use cluster=local_parallel"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{command[0]} did not answer in {_TIMEOUT_SECONDS} s; give the same command again "
            "when Slurm is back"
        ) from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]}: {said}")
    return done.stdout


def _ids(jobs: Iterable[str]) -> list[str]:
    """The arrays (or single jobs) that the jobs belong to."""
    return sorted({job.partition("_")[0] for job in jobs}, key=int)


def queue_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """What squeue knows of jobs: those in the queue and those that ended minutes ago.

    Raises:
        SlurmError: the controller does not answer: nothing may be concluded.
    """
    ids = _ids(jobs)
    if not ids:
        return {}
    command = ["squeue", "-h", "-r", "--states=all", "-o", "%i|%T|%r|%N", "-j", ",".join(ids)]
    try:
        text = call(command)
    except SlurmError as error:
        if "Invalid job id" in str(error):  # all of them left the queue long ago
            return {}
        raise
    return _read_states(text)


def _read_states(text: str) -> dict[str, JobState]:
    states = {}
    for line in text.splitlines():
        job, _, rest = line.strip().partition("|")
        state, reason, node = [*rest.split("|"), "", ""][:3]
        if job:
            states[job] = JobState(state.split()[0] if state else "", reason, node)
    return states


def final_states(jobs: Iterable[str]) -> dict[str, JobState]:
    """How jobs ended, as far as accounting tells; empty where there is none."""
    ids = _ids(jobs)
    if not ids:
        return {}
    command = ["sacct", "-n", "-X", "--parsable2", "-o", "JobID,State,ExitCode,NodeList"]
    try:
        return _read_states(call([*command, "-j", ",".join(ids)]))
    except SlurmError:
        return {}


def find_by_name(name: str) -> str | None:
    """The job (or array) of that name, if it was submitted a short time ago."""
    text = call(["squeue", "-h", "--states=all", "-o", "%F", "--name", name])
    jobs = text.split()
    return jobs[0] if jobs else None


def max_array_size() -> int:
    """How many jobs an array may have here."""
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.M)
    # the number caps the highest index, which begins at 0
    return max(1, int(limit.group(1)) - 1) if limit else _DEFAULT_ARRAY_SIZE - 1
