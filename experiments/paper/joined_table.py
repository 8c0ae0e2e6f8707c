"""Our cells beside a paper's: the two numbers, their difference, how far the protocols are apart.

A published number that nobody has checked is printed with the word `unverified`. Where our
unquantized model is off from the paper's by more than its own spread, the table says that nothing
of that model may be compared, and its differences stand in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.metrics.metric_interface import Shown
from evaluation.records import Metric, Record
from evaluation.report.columns import NO_VALUE, Cell, Column, format_number, text_column
from evaluation.report.marks import Row
from evaluation.report.rows import FLOAT_METHOD, Pooled, Scored
from evaluation.report.tables import MISSING, Table, make_table
from experiments.config.run_config import RunConfig
from experiments.paper.paper_setup import PaperSetup, beside, config_of
from experiments.paper.protocol_distance import protocol_distance
from experiments.paper.published_numbers import PublishedRow, PublishedTable

UNVERIFIED = "unverified"
_SD_OF_INTERVAL = 2.0  # standard deviations that count as a spread
_INCEPTION = "inception"
_NUMBERED = re.compile(r"\(\d+\)")
_PATTERNS = {  # of a published column's metric: the names that it may have in a record
    "fid_dataset": re.compile(r"fid_(.+)_dataset_(same|other)_prompts"),
    "fid_reference": re.compile(r"fid_(.+)_reference"),
}
_IDENTITY = ("model", "method", "bits")
_END = ("effective_bits_per_weight", "weight_bytes", "status")
_LEGEND = (
    "Paper: the row's name there; what the released code runs under a name stands beside the "
    "method of that name.",
    f"NAME, paper: as printed there; {UNVERIFIED}: nobody here has checked it against the paper.",
    "NAME, ours - paper: the difference, then how many fields of the two protocols agree / differ "
    "/ are unknown; in brackets: not to be compared, since the unquantized model is off by more "
    "than its spread, or not known not to be.",
    "Protocol: the same of the whole row, every field by name in the note.",
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an experiment asks for: its cells' configs, and the words that make them."""

    name: str
    words: tuple[str, ...]  # after +experiment=NAME
    configs: tuple[RunConfig, ...]

    @property
    def command(self) -> str:
        return " ".join(["segbench run", f"+experiment={self.name}", *self.words])


def experiment_table(
    cells: Sequence[Scored],
    asked: Asked,
    *,
    setup: PaperSetup | None,
    missing: Sequence[tuple[str, str, str]],
    descriptions: Sequence[Shown] | None = None,
    commands: bool = True,
) -> Table:
    """The table of an experiment: beside its published one, where it has one.

    Args:
        missing: the names of cells without a record, each as often as there are such cells.
        commands: the legend begins with those that make the table and what is not there yet.
    """
    table = make_table(
        cells,
        descriptions=descriptions,
        missing=missing,
        title=asked.name,
        costs=setup is not None and setup.costs,
    )
    if setup is not None and setup.table is not None:
        table = _Joined(base=table, asked=asked, setup=setup, published=setup.table).table()
    states = _states(cells, asked, missing=len(missing)) if commands else []
    return replace(table, legend=[*states, *table.legend])


def _states(cells: Sequence[Scored], asked: Asked, *, missing: int) -> list[str]:
    """The command that makes the table, and what of it is not there yet."""
    total = len(asked.configs)
    failed = sum(cell.record.status == "failed" for cell in cells)
    lines = [f"Made by: {asked.command}, then segbench table {asked.name}."]
    if missing:
        lines.append(f"Missing: {missing} of {total} cells. This makes them: {asked.command}")
    if failed:
        again = " ".join(["segbench retry", asked.name, *asked.words])
        lines.append(f"Failed: {failed} of {total} cells. This tries them again: {again}")
    return lines


@dataclass(frozen=True, kw_only=True)
class _Joined:
    base: Table
    asked: Asked
    setup: PaperSetup
    published: PublishedTable

    def table(self) -> Table:
        rows: list[Row] = []
        printed: list[PublishedRow] = []
        for row in self.base.rows:
            theirs = self._beside(row)
            printed += theirs
            rows += [self._row(row, one) for one in theirs] or [self._row(row, None)]
        rows += [
            self._row(_not_here(one), one)
            for one in self.published.rows
            if not any(one is seen for seen in printed)
        ]
        gates = [f"{model}: {gate}" for model, gate in self._gates().items() if gate]
        head = f"{self.base.caption} Beside {self.published.paper}, {self.published.title}."
        return Table(
            caption=" ".join([head, *gates]),
            columns=self._columns(),
            rows=rows,
            legend=[
                *_LEGEND,
                *(
                    line
                    for line in self.base.legend
                    if not any(line.startswith(f"{title}:") for title in self._left_out())
                ),
                *self._provenances(),
            ],
            notes=_number_notes(rows),
        )

    # columns --------------------------------------------------------------------------------

    def _ours(self) -> dict[str, Column | None]:
        """Published column -> ours; None where no cell has it."""
        by_metric = {column.metric: column for column in self.base.columns if column.metric}
        return {name: nearest(metric, by_metric) for name, metric in self.published.columns.items()}

    def _columns(self) -> list[Column]:
        kept = {column.key: column for column in self.base.columns}
        model, method, bits = (kept[key] for key in _IDENTITY)
        paper = text_column("paper", title="Paper", legend="", text=lambda r: "")
        columns = [model, method, paper, bits]
        for name, column in self._ours().items():
            title = column.title if column else name
            for key, text in ((name, title), (f"{name}_paper", f"{name}, paper")):
                columns.append(replace(BLANK, key=key, title=text))
            columns.append(replace(BLANK, key=f"{name}_difference", title=f"{name}, ours - paper"))
        return [*columns, _PROTOCOL, *(kept[key] for key in _END)]

    def _left_out(self) -> list[str]:
        shown = {column.key for column in self._columns()}
        shown |= {column.key for column in self._ours().values() if column}
        return [column.title for column in self.base.columns if column.key not in shown]

    def _provenances(self) -> list[str]:
        known = {row.provenance: None for row in self.published.rows}
        return [
            f"{self.published.paper}, {self.published.title} ({self.published.about}). Source: "
            f"{one.source}. Read by: {one.read_by}. "
            f"{'Verified' if one.verified else 'Not verified'}."
            for one in known
        ]

    # rows -----------------------------------------------------------------------------------

    def _config(self, row: Row) -> RunConfig | None:
        return config_of(row.pooled.record, self.asked.configs)

    def _beside(self, row: Row) -> list[PublishedRow]:
        config = self._config(row)
        return [] if config is None else beside(config, self.setup)

    def _row(self, row: Row, theirs: PublishedRow | None) -> Row:
        at = {column.key: index for index, column in enumerate(self.base.columns)}
        known = len(row.cells) == len(self.base.columns)

        def ours(key: str) -> Cell:
            if not known or key not in at:
                return Cell(text=NO_VALUE)
            cell = row.cells[at[key]]
            return replace(cell, marks=[m for m in cell.marks if not _NUMBERED.fullmatch(m)])

        identity = [ours(key) for key in _IDENTITY] if known else _said_by(theirs)
        model, method, bits = identity
        name = "" if theirs is None else theirs.name
        cells = [model, method, Cell(text=name or NO_VALUE, value=name), bits]
        for column, mine in self._ours().items():
            value = None if theirs is None else theirs.values[column]
            cells.append(ours(mine.key) if mine else Cell(text=NO_VALUE))
            cells.append(self._paper_cell(column, value, theirs))
            cells.append(self._difference(row, theirs, column=column, mine=mine))
        cells.append(self._protocol(row, theirs))
        end = [ours(key) for key in _END]
        if not known:
            end[-1] = Cell(text="not here", value="not here", note="no cell of this experiment")
        return replace(row, cells=[*cells, *end])

    def _paper_cell(self, column: str, value: float | None, theirs: PublishedRow | None) -> Cell:
        if value is None or theirs is None:
            return Cell(text=NO_VALUE)
        said = "" if theirs.provenance.verified else f" {UNVERIFIED}"
        return Cell(text=f"{self._printed(column, value)}{said}", value=value)

    def _printed(self, column: str, value: float) -> str:
        """With as many decimals as any value of the column."""
        values = [row.values[column] for row in self.published.rows]
        texts = [repr(float(known)) for known in values if known is not None]
        decimals = max(len(text.partition(".")[2]) for text in texts)
        return format_number(value, decimals=decimals)

    def _difference(
        self, row: Row, theirs: PublishedRow | None, *, column: str, mine: Column | None
    ) -> Cell:
        metric = _metric(row, mine)
        value = None if theirs is None else theirs.values[column]
        config = self._config(row)
        if metric is None or metric.value is None or value is None or config is None:
            return Cell(text=NO_VALUE)
        assert mine is not None
        assert theirs is not None
        found = protocol_distance(
            config, theirs.protocol, model=theirs.at.get("model"), metric=mine.metric or ""
        )
        difference = metric.value - value
        digits = self._printed(column, difference)
        text = digits if difference < 0 else f"+{digits}"
        if self._gates().get(row.pooled.record.model, ""):
            text = f"({text})"
        counts = f"{len(found.agree)}/{len(found.differ)}/{len(found.unknown)}"
        return Cell(text=f"{text} {counts}", value=difference)

    def _protocol(self, row: Row, theirs: PublishedRow | None) -> Cell:
        config = self._config(row)
        if theirs is None or config is None:
            return Cell(text=NO_VALUE)
        found = protocol_distance(config, theirs.protocol, model=theirs.at.get("model"))
        return Cell(text=found.short, value=found.short, note=found.full)

    # may anything be compared? ----------------------------------------------------------------

    def _gates(self) -> dict[str, str]:
        """Model -> why nothing of it may be compared; empty where the unquantized rows agree."""
        models = dict.fromkeys(config.model.name for config in self.asked.configs)
        return {model: self._gate(model) for model in models}

    def _gate(self, model: str) -> str:
        rows = [
            row
            for row in self.base.rows
            if row.pooled.record.model == model and row.pooled.record.method == FLOAT_METHOD
        ]
        pairs = [(row, theirs) for row in rows for theirs in self._beside(row)]
        compared, off = [], []
        for row, theirs in pairs:
            for name, column in self._ours().items():
                metric, value = _metric(row, column), theirs.values[name]
                if metric is None or metric.value is None or value is None:
                    continue
                compared.append(name)
                if abs(metric.value - value) > spread(metric):
                    said = self._printed(name, metric.value)
                    off.append(f"{name} {said} against {self._printed(name, value)}")
        if off:
            return (
                f"fp is off from the paper's by more than its spread ({', '.join(off)}): "
                "nothing below it may be compared with the paper."
            )
        if not compared:
            return (
                "no number of fp stands beside the paper's: whether anything may be compared is "
                "not known."
            )
        return ""


BLANK = Column(key="", title="", legend="", cell=lambda record: Cell(text=NO_VALUE))
_PROTOCOL = replace(BLANK, key="protocol", title="Protocol", numeric=False)


def spread(metric: Metric) -> float:
    """Half of its 95 % interval, or two standard deviations; 0 where neither is known."""
    if metric.interval is None:
        return 0.0
    low, high = metric.interval
    half = (high - low) / 2
    return half * _SD_OF_INTERVAL if metric.interval_kind == "sd" else half


def _metric(row: Row, column: Column | None) -> Metric | None:
    return None if column is None else row.pooled.record.metrics.get(column.metric or "")


def nearest(metric: str, by_metric: Mapping[str, Column]) -> Column | None:
    """Our column that a published one is nearest to; of distances Inception's, else the first."""
    pattern = _PATTERNS.get(metric)
    if pattern is None:
        return by_metric.get(metric)
    found = [(match, name) for name in by_metric if (match := pattern.fullmatch(name))]
    found.sort(key=lambda item: item[0][1] != _INCEPTION)
    return by_metric[found[0][1]] if found else None


def _not_here(row: PublishedRow) -> Row:
    record = Record(
        run_id="",
        status=MISSING,
        reason="no cell of this experiment",
        model=str(row.at.get("model", "")),
        method=str(row.at.get("method", "")),
        bits=str(row.at.get("bits", "")),
        dataset="",
        seed=0,
    )
    pooled = Pooled(record=record, cells=(Scored(record=record),))
    return Row(pooled=pooled, kind="missing", cells=[])


def _said_by(row: PublishedRow | None) -> list[Cell]:
    at = {} if row is None else row.at
    texts = [str(at.get(key) or NO_VALUE) for key in _IDENTITY]
    return [Cell(text=text, value=text) for text in texts]


def _number_notes(rows: Sequence[Row]) -> list[str]:
    notes: list[str] = []
    for cell in (cell for row in rows for cell in row.cells if cell.note):
        if cell.note not in notes:
            notes.append(cell.note)
        cell.marks.append(f"({notes.index(cell.note) + 1})")
    return notes
