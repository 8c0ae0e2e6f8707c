"""What a job asks of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field

EXECUTORS = ("local", "slurm")


@dataclass(kw_only=True)
class JobSettings:
    """What a job asks of the machine. On `local` only `parallel` and `timeout_minutes` count."""

    executor: str  # local (processes of this machine) or slurm
    parallel: int  # jobs at a time
    timeout_minutes: int
    cpus: int
    memory_gb: int
    gpus: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    setup: list[str] = field(default_factory=list)  # shell lines before the job: modules, exports

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor={self.executor!r}; choose one of {', '.join(EXECUTORS)}")
        for name in ("parallel", "timeout_minutes", "cpus", "memory_gb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
