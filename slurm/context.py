"""Where this process runs: the job, how often it was requeued, and who it is among processes."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def job_id() -> str:
    """The Slurm job as squeue prints it (`123_4` in an array), or an empty string."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    return os.environ.get("SLURM_JOB_ID", "")


def requeues() -> int:
    """How often Slurm has started this job again after a preemption, a time-out or a lost node."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)


def describe_job() -> dict[str, Any]:
    """For a record: which job made it, where, and after how many requeues."""
    return {
        "host": socket.gethostname(),
        "job": job_id() or None,
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
        "requeues": requeues(),
    }


def process_identity() -> dict[str, Any]:
    """What tells this process from every other one on every machine that shares a folder."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "job": job_id(),
        "requeues": requeues(),
    }


@functools.cache
def machine() -> str:
    """One boot of one machine, and one space of process numbers (a container has its own)."""
    try:
        boot = _BOOT.read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return f"{boot} {space}"


def process_start(pid: int) -> int | None:
    """When a living process of this machine began, in ticks since boot; None if it is over.

    A number that is used again has another start.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])  # a zombie is over too


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether the process that said this of itself has certainly ended.

    False means only that it cannot be told from here: it may run on another machine, be it an
    earlier run of this very job on a node that Slurm lost and that is alive.
    """
    if not machine() or owner.get("machine") != machine():
        return False
    start = process_start(int(owner.get("pid", 0)))
    return start is None or start != owner.get("started")
