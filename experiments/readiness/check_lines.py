"""What `check` says: one line a thing, in groups, with the command that brings what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar

from experiments.errors import UserError

Value = TypeVar("Value")


class State(StrEnum):
    """Whether a run could start: only `missing` stops it."""

    ok = "ok"
    missing = "missing"
    without = "without"  # the run goes on without it: a skipped row, a metric that is not measured
    unknown = "unknown"
    note = "note"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line."""

    group: str
    what: str
    state: State = State.ok
    command: str = ""  # what brings it, or tells more

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "state": str(self.state)}


def found(
    group: str, ask: Callable[[], Value], findings: list[Finding], *, command: str = ""
) -> Value | None:
    """What `ask` answers; None where the request turns out to be wrong, which is then a line."""
    try:
        return ask()
    except (UserError, ValueError) as error:
        said = " ".join(str(error).split())
        line = Finding(group=group, what=said, state=State.missing, command=command)
        if line not in findings:
            findings.append(line)
        return None


def render(findings: Sequence[Finding]) -> list[str]:
    """A line each, groups together, in the order in which they came up."""
    groups = list(dict.fromkeys(finding.group for finding in findings))
    ordered = sorted(findings, key=lambda finding: groups.index(finding.group))
    return [
        f"{finding.state:<8}{finding.group:<9} {finding.what}"
        + (f" -> {finding.command}" if finding.command else "")
        for finding in ordered
    ]


def size(count: float) -> str:
    """Bytes for people: `24.3 GB`, `7.97 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
