"""What a paper's table says of two of its rows, and whether ours say it too.

Two protocols that differ make different numbers; which of two methods is better may still be asked
of both. Ours is the difference prompt by prompt, calibration draws crossed with prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from evaluation.report.columns import NO_VALUE, Cell, Column, default_columns, format_number
from evaluation.report.marks import Row
from evaluation.report.rows import FEWEST_DRAWS, Pooled, Scored, pair, pool
from evaluation.report.tables import Table
from evaluation.statistics import Estimate, holm, paired_interval
from experiments.paper.joined_table import BLANK, Asked, nearest
from experiments.paper.paper_setup import PaperSetup, beside, config_of
from experiments.paper.published_numbers import PublishedRow

CONFIRMED, CONTRADICTED, OPEN = "confirmed", "contradicted", "not told apart"
_LEVEL = "p at most 0.05 after Holm over the table"
_TITLES = ("Model", "Bits", "A", "B", "Metric", "A - B, paper", "A - B, ours", "Draws", "Paper")
_LEGEND = (
    "A - B, paper: the difference of the two printed numbers; A - B, ours: of ours, prompt by "
    "prompt, calibration draws crossed with prompts; [95 % interval].",
    f"Paper: {CONFIRMED}, ours has the paper's sign, {CONTRADICTED}, the other one, {_LEVEL}; else "
    f"{OPEN}. Fewer than {FEWEST_DRAWS} draws speak of those draws alone.",
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One metric of two rows, A and B, in the paper and here."""

    a: Pooled
    b: Pooled
    metric: str
    title: str
    published: float  # A - B
    decimals: int
    ours: Estimate
    p_value: float
    draws: int

    @property
    def key(self) -> str:
        parts = (self.a.record.model, self.a.record.bits_label, self.a.record.method_label)
        return " | ".join([*parts, self.b.record.method_label, self.metric])


def find_claims(cells: Sequence[Scored], asked: Asked, *, setup: PaperSetup) -> list[Claim]:
    """Every two rows of one model and bits that the paper has too, on every metric of both."""
    if setup.table is None:
        return []
    done = [cell for cell in cells if cell.record.status == "ok"]
    columns = {c.metric: c for c in default_columns([cell.record for cell in done]) if c.metric}
    per_image = {name: column.per_image for name, column in columns.items()}
    rows = [
        (row, theirs)
        for row in pool(done, columns=per_image)
        if row.calibrated
        for theirs in _beside(row, asked, setup=setup)
    ]
    claims = []
    for a, b, theirs_a, theirs_b in _pairs(rows):
        for name, metric in setup.table.columns.items():
            column = nearest(metric, columns)
            x, y = theirs_a.values[name], theirs_b.values[name]
            if column is None or x is None or y is None or x == y:
                continue
            decimals = max(len(repr(float(v)).partition(".")[2]) for v in (x, y))
            claims += _claim(a, b, column=column, published=x - y, decimals=decimals)
    return claims


def claims_table(claims: Sequence[Claim], *, title: str) -> Table | None:
    """None where the two have nothing in common."""
    if not claims:
        return None
    judged = holm({claim.key: claim.p_value for claim in claims})
    rows = [
        Row(pooled=claim.a, kind="method", cells=_cells(claim, sure=judged[claim.key].rejected))
        for claim in claims
    ]
    columns = [
        replace(BLANK, key=text.lower().replace(" ", "_"), title=text, numeric="A - B" in text)
        for text in _TITLES
    ]
    return Table(
        caption=f"{title}: what the paper's rows say of each other, and what ours say.",
        columns=columns,
        rows=rows,
        legend=list(_LEGEND),
        notes=[],
    )


def _beside(row: Pooled, asked: Asked, *, setup: PaperSetup) -> list[PublishedRow]:
    config = config_of(row.record, asked.configs)
    return [] if config is None else beside(config, setup)


def _pairs(
    rows: Sequence[tuple[Pooled, PublishedRow]],
) -> Iterator[tuple[Pooled, Pooled, PublishedRow, PublishedRow]]:
    """A is the later row of the paper's table, which are in the order of its argument."""
    for number, (b, theirs_b) in enumerate(rows):
        for a, theirs_a in rows[number + 1 :]:
            alike = (a.record.model, a.record.bits) == (b.record.model, b.record.bits)
            other = theirs_a.at.get("dataset") == theirs_b.at.get("dataset")
            if alike and other and theirs_a is not theirs_b:
                yield a, b, theirs_a, theirs_b


def _claim(a: Pooled, b: Pooled, *, column: Column, published: float, decimals: int) -> list[Claim]:
    try:
        found = pair(a, b, column.per_image)
    except ValueError:
        return []
    if found is None or not found.prompts:
        return []
    ours, p_value = paired_interval(found.a_CN, found.b_CN)
    return [
        Claim(
            a=a,
            b=b,
            metric=column.metric or "",
            title=column.title,
            published=published,
            decimals=decimals,
            ours=ours,
            p_value=p_value,
            draws=len(found.a_CN),
        )
    ]


def verdict(claim: Claim, *, sure: bool) -> str:
    if not sure:
        return OPEN
    said = CONFIRMED if (claim.ours.value > 0) == (claim.published > 0) else CONTRADICTED
    return said if claim.draws >= FEWEST_DRAWS else f"{said}, of {claim.draws} draw alone"


def _cells(claim: Claim, *, sure: bool) -> list[Cell]:
    record, ours = claim.a.record, claim.ours
    said = [
        *(record.model, record.bits_label, record.method_label),
        *(claim.b.record.method_label, claim.title),
    ]
    printed = format_number(claim.published, decimals=claim.decimals)
    numbers = [f"{value:.3g}" for value in (ours.value, ours.low, ours.high)]
    mine = Cell(
        text=f"{numbers[0]} [{numbers[1]}, {numbers[2]}]",
        value=ours.value,
        low=ours.low,
        high=ours.high,
    )
    end = [str(claim.draws), verdict(claim, sure=sure)]
    texts = [Cell(text=text or NO_VALUE, value=text) for text in said]
    return [
        *texts,
        Cell(text=printed, value=claim.published),
        mine,
        *(Cell(text=text, value=text) for text in end),
    ]
