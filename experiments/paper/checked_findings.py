"""What the README says we found: sentences with numbers, each made from a committed table.

`python -m experiments.paper.checked_findings` writes them between the README's marks. A sentence
whose table no longer bears it out is refused, and a test makes all of them again.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evaluation.report.columns import default_columns
from evaluation.report.rows import Pooled, pair, pool
from evaluation.statistics import Estimate, holm, paired_interval, paired_ratio
from experiments.errors import UserError
from experiments.paper.keep_results import KEPT_RESULTS
from experiments.paper.kept_cells import KEPT, read_kept
from experiments.store.folders import write_text
from experiments.store.paths import ROOT

FINDINGS = Path(__file__).parent / "findings.yaml"
README = ROOT / "README.md"
BEGIN, END = "<!-- found: begin -->", "<!-- found: end -->"
RELATIONS = ("above", "below", "alike", "read")
_RATIOS = ("step_error",)  # of which a / b is judged; of others a - b
_VALUE = "{value}"
_ROW = ("model", "method", "bits")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence with `{value}` in it, and what of which table it is.

    `above`, `below`, `alike`: rows a and b, prompt by prompt, draws crossed with prompts, Holm over
    all findings; {value} is a - b, or a / b of the step error. `read`: the text of one cell.
    """

    text: str
    table: str  # below experiments/results/paper
    column: str
    relation: str
    a: Mapping[str, str]
    b: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A question, and what is found of it. `claim`: what the paper says of it."""

    about: str
    claim: str
    verdict: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A finding with its number, and whether the table bears it out."""

    finding: Finding
    value: str
    holds: bool


def read_topics(path: Path = FINDINGS) -> list[Topic]:
    """Every topic of the file.

    Raises:
        UserError: a finding without its number or with an unknown relation.
    """
    topics = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        findings = tuple(Finding(**one) for one in entry["findings"])
        for one in findings:
            if one.relation not in RELATIONS or one.text.count(_VALUE) != 1:
                raise UserError(
                    f"{path.name}: {one.text!r} with relation={one.relation}; use one of "
                    f"{', '.join(RELATIONS)}, and {_VALUE} once in the text"
                )
        topics.append(Topic(**{**entry, "findings": findings}))
    return topics


def judge(findings: Sequence[Finding], *, results: Path = KEPT_RESULTS) -> list[Judged]:
    """Each with its number; the p-values of all are corrected together.

    Raises:
        UserError: a row or column is not in the table.
    """
    tables = {
        name: _table(results / name / KEPT)
        for name in dict.fromkeys(one.table for one in findings if one.relation != "read")
    }
    compared = {
        number: _compare(one, table=tables[one.table])
        for number, one in enumerate(findings)
        if one.relation != "read"
    }
    sure = holm({str(number): p_value for number, (_, p_value) in compared.items()})
    judged = []
    for number, one in enumerate(findings):
        if one.relation == "read":
            judged.append(Judged(finding=one, value=_read(one, results=results), holds=True))
            continue
        found, _ = compared[number]
        apart = sure[str(number)].rejected
        middle = 1.0 if one.column in _RATIOS else 0.0
        seen = "alike" if not apart else "above" if found.value > middle else "below"
        judged.append(Judged(finding=one, value=_shown(found), holds=seen == one.relation))
    return judged


def found_text(topics: Sequence[Topic], *, results: Path = KEPT_RESULTS) -> str:
    """The README's paragraphs, one a topic.

    Raises:
        UserError: a sentence that its table does not bear out.
    """
    judged = iter(judge([one for topic in topics for one in topic.findings], results=results))
    paragraphs = []
    for topic in topics:
        said = ""
        for finding in topic.findings:
            one = next(judged)
            if not one.holds:
                raise UserError(
                    f"{finding.table} does not bear out {finding.text!r}: "
                    f"{one.value} is not {finding.relation}"
                )
            sentence = " ".join(finding.text.replace(_VALUE, one.value).split())
            said += (", " if sentence[0].islower() else ". " if said else "") + sentence
        tables = dict.fromkeys(finding.table for finding in topic.findings)
        links = ", ".join(f"[{t}](experiments/results/paper/{t}/table.md)" for t in tables)
        paragraphs.append(
            f"**{topic.about}.** The paper: {topic.claim}. *{topic.verdict}* {said} ({links})."
        )
    return "\n\n".join(paragraphs)


def with_findings(readme: str, text: str) -> str:
    """The README with these paragraphs between its marks."""
    marks = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    made, count = marks.subn(lambda _: f"{BEGIN}\n{text}\n{END}", readme)
    if count != 1:
        raise UserError(f"README.md has {count} places between {BEGIN} and {END}; keep one")
    return made


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A committed table's rows, and the per-image column of each metric."""

    rows: list[Pooled]
    per_image: Mapping[str, str]


def _table(path: Path) -> _Table:
    done = [cell for cell in read_kept(path) if cell.record.status == "ok"]
    columns = default_columns([cell.record for cell in done])
    per_image = {column.metric: column.per_image for column in columns if column.metric}
    return _Table(rows=pool(done, columns=per_image), per_image=per_image)


def _compare(finding: Finding, *, table: _Table) -> tuple[Estimate, float]:
    column = table.per_image.get(finding.column)
    if not column:
        raise UserError(f"{finding.table} has no scores of {finding.column!r} prompt by prompt")
    a, b = (_row(table.rows, at, table=finding.table) for at in (finding.a, finding.b))
    found = pair(a, b, column)
    if found is None:
        raise UserError(f"{finding.table}: no scores of {finding.column} at {dict(finding.a)}")
    if finding.column in _RATIOS:
        ratio = paired_ratio(found.a_CN, found.b_CN)
        return ratio, ratio.p_value
    return paired_interval(found.a_CN, found.b_CN)


def _row(rows: Sequence[Pooled], at: Mapping[str, str], *, table: str) -> Pooled:
    for row in rows:
        record = row.record
        said: dict[str, Any] = dict(
            zip(_ROW, (record.model, record.method_label, record.bits_label), strict=True)
        )
        said |= {key: str(record.protocol.get(key)) for key in at if key not in said}
        if all(said[key] == str(value) for key, value in at.items()):
            return row
    raise UserError(f"{table}: no row {dict(at)}")


def _read(finding: Finding, *, results: Path) -> str:
    path = results / finding.table / "table.csv"
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if all(row.get(key) == value for key, value in finding.a.items())
        ]
    if len(rows) != 1 or not rows[0].get(finding.column):
        raise UserError(f"{finding.table}: no {finding.column} in one row {dict(finding.a)}")
    return rows[0][finding.column]


def _shown(found: Estimate) -> str:
    value, low, high = (f"{number:.2f}" for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.paper.checked_findings")
    parser.parse_args()
    try:
        text = found_text(read_topics())
        write_text(README, with_findings(README.read_text(encoding="utf-8"), text))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
