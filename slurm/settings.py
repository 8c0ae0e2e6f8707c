"""What a job asks of the machine."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

EXECUTORS = ("local", "slurm")


@dataclass(kw_only=True)
class JobSettings:
    """What a job asks of the machine.

    On `local` only `parallel`, `timeout_minutes`, `gpus`, `setup` and `environment` count.
    """

    executor: str  # local (processes of this machine) or slurm
    parallel: int  # jobs at a time
    timeout_minutes: int
    cpus: int
    memory_gb: int
    gpus: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # of nodes, as sbatch takes it: keeps a sweep on one kind of GPU
    setup: list[str] = field(default_factory=list)  # shell lines before the job: modules, exports
    python: str | None = None  # what starts Python on a node, such as a container; null is this one
    environment: dict[str, str] = field(default_factory=dict)  # variables of the job
    signal: str = "USR2"  # what Slurm sends before it ends a job
    signal_seconds: int = 120  # how long before
    max_requeues: int = 20  # time-outs after which a job is given up; preemptions do not count
    options: dict[str, str] = field(default_factory=dict)  # further options of sbatch

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor={self.executor!r}; choose one of {', '.join(EXECUTORS)}")
        least = {"parallel": 1, "timeout_minutes": 1, "cpus": 1, "memory_gb": 1, "gpus": 0}
        for name, value in {**least, "signal_seconds": 1, "max_requeues": 0}.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least {value}")
        if f"SIG{self.signal}" not in signal.Signals.__members__:
            raise ValueError(f"signal={self.signal!r}; give a name such as USR1 or USR2")
