"""Work that Slurm may stop at any moment and start again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from submitit.core.utils import DelayedSubmission


@dataclass
class Resumable:
    """Calls `work`; on the signal that ends a job, the same work is queued again as it then is.

    The work itself goes on from what lies on disk: with a kill without warning, as Slurm does it
    where no signal is configured, nothing here is called at all.
    """

    work: Callable[[], Any]

    def __call__(self) -> Any:
        return self.work()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again."""
        return DelayedSubmission(self)
