"""How fast pairs of images are measured, said on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from experiments.cell.progress import duration

_LONG_SECONDS = 10  # a pass that takes longer says its pace when it has begun


@dataclass(kw_only=True)
class Pace:
    """Says on stderr how fast it goes: when that is known, and at the end of what takes long."""

    what: str
    count: int
    size: str
    begun: float = field(default_factory=time.perf_counter)
    done: int = 0
    said: bool = False

    def told(self, more: int) -> None:
        self.done += more
        seconds = time.perf_counter() - self.begun
        each = seconds / self.done
        if self.done < self.count and not self.said and each * self.count > _LONG_SECONDS:
            self.said = True
            left = duration(each * (self.count - self.done))
            self._say(f"{each:.2g} s a pair of {self.size}, about {left} for the rest")
        elif self.done == self.count:
            self._say(
                f"{self.count} pairs of {self.size} in {duration(seconds)}, {each:.2g} s each"
            )

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{self.what}: {text}\n")
