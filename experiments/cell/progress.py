"""How far a sweep is and how long it will still take; on stderr, quiet when that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

_REDRAW_SECONDS = 0.2


def duration(seconds: float) -> str:
    """For people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """One line that is redrawn: the cell, its stage, prompts done, an estimate of the time left.

    The estimate is prompts still to be sampled times the time that a prompt has taken so far.
    """

    def __init__(self, *, cells: int, prompts: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._cells, self._cell, self._label = cells, 0, ""
        self._prompts_left, self._prompts_done = prompts, 0
        self._sampling_seconds = 0.0
        self._drawn = 0.0

    def expect(self, prompts: int) -> None:
        """So many prompts are still to be sampled."""
        self._prompts_left = prompts

    def cell(self, label: str) -> None:
        """The next cell begins."""
        self._cell += 1
        self._label = label

    def part(self, stage: str) -> Callable[[int], None]:
        """For a stage that samples prompts: call the result with the number done so far."""
        before, begun = 0, time.perf_counter()

        def done(count: int) -> None:
            nonlocal before, begun
            now = time.perf_counter()
            self._prompts_done += count - before
            self._prompts_left = max(0, self._prompts_left - (count - before))
            self._sampling_seconds += now - begun
            before, begun = count, now
            self._draw(f"{stage} {count}")

        return done

    def left(self) -> float | None:
        """Seconds still to go, or None as long as nothing has been measured."""
        if not self._prompts_done:
            return None
        return self._prompts_left * self._sampling_seconds / self._prompts_done

    def _draw(self, text: str) -> None:
        if not self._live or time.perf_counter() - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = time.perf_counter()
        left = self.left()
        tail = "" if left is None else f", about {duration(left)} left"
        self._stream.write(f"\r\033[K[{self._cell}/{self._cells}] {self._label}: {text}{tail}")
        self._stream.flush()

    def note(self, text: str) -> None:
        """A line that stays."""
        self._stream.write(("\r\033[K" if self._live else "") + text + "\n")
        self._stream.flush()
