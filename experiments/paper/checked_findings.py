"""Sentences of docs/findings.md, each with the two rows of a committed table that bear it out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from experiments.errors import UserError

FINDINGS = Path(__file__).parent / "findings.yaml"
RELATIONS = ("apart", "alike")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`relation` "apart": all of a's interval is above all of b's; "alike": they overlap."""

    text: str
    table: str  # below experiments/results/paper
    column: str
    relation: str
    a: Mapping[str, str]
    b: Mapping[str, str]


def read_findings(path: Path = FINDINGS) -> list[Finding]:
    """Every sentence that is held to a table."""
    return [Finding(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]


def holds(finding: Finding, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether the table, as read from its csv, still says so.

    Raises:
        UserError: a row is not there, or has no interval in that column.
    """
    (low_a, high_a), (low_b, high_b) = (
        _interval(finding, at, rows) for at in (finding.a, finding.b)
    )
    if finding.relation == "apart":
        return low_a > high_b
    return low_a <= high_b and low_b <= high_a


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _interval(
    finding: Finding, at: Mapping[str, str], rows: Sequence[Mapping[str, str]]
) -> tuple[float, float]:
    found = [row for row in rows if all(row.get(key) == value for key, value in at.items())]
    ends = [f"{finding.column}_{end}" for end in ("low", "high")]
    if not found or not all(found[0].get(end) for end in ends):
        raise UserError(f"{finding.table}: no interval of {finding.column} at {dict(at)}")
    return float(found[0][ends[0]]), float(found[0][ends[1]])
