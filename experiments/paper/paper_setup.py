"""What an experiment's yaml says of its published table, under `paper:`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from experiments.config.naming import changed_settings, names
from experiments.config.places import read_yaml
from experiments.config.run_config import RunConfig
from experiments.errors import UserError
from experiments.paper.published_numbers import PublishedRow, PublishedTable, published_table

if TYPE_CHECKING:
    from evaluation.records import Record

_KEYS = ("table", "stands_for", "study", "figure", "costs")
_KEYS_OF_CELLS = ("model", "bits", "method", "dataset")


@dataclass(frozen=True, kw_only=True)
class PaperSetup:
    """`stands_for`: a model, data set or bits here -> that of the paper in whose place it stands.

    `study`: the module in `experiments/paper/` that measures on stored stages, where the table is
    none of cells. `figure`: which of `paper_charts` is drawn beside the table.
    `costs`: whether the table has columns of what quantizing took.
    """

    table: PublishedTable | None = None
    stands_for: Mapping[str, str] = field(default_factory=dict)
    study: str | None = None
    figure: str | None = None
    costs: bool = False


def paper_setup(experiment: str) -> PaperSetup | None:
    """None where the experiment is beside no published table and no study.

    Raises:
        UserError: a key that does not exist, or a table that is not there.
    """
    content = read_yaml("experiment", experiment).get("paper")
    if content is None:
        return None
    if not isinstance(content, Mapping) or set(content) - set(_KEYS):
        raise UserError(f"experiment {experiment}: paper has {content}; use {', '.join(_KEYS)}")
    table = content.get("table")
    return PaperSetup(
        table=None if table is None else published_table(str(table)),
        stands_for={str(k): str(v) for k, v in (content.get("stands_for") or {}).items()},
        study=content.get("study"),
        figure=content.get("figure"),
        costs=bool(content.get("costs", False)),
    )


def beside(config: RunConfig, setup: PaperSetup) -> list[PublishedRow]:
    """The published rows that a cell is beside: by its method, or by what was released as it."""
    rows: Sequence[PublishedRow] = () if setup.table is None else setup.table.rows
    return [row for row in rows if _is_beside(config, row, stands_for=setup.stands_for)]


def config_of(record: Record, configs: Sequence[RunConfig]) -> RunConfig | None:
    """The first config that a record, or a row for a missing one, is of."""
    return next((config for config in configs if _is_of(record, config)), None)


def _is_of(record: Record, config: RunConfig) -> bool:
    if record.model != config.model.name:
        return False
    if not record.run_id:  # no record: the row holds the names alone
        return (record.method, record.bits) == names(config)[1:]
    keys = (record.method, record.bits) == (config.method_name, config.bits.name)
    return keys and record.settings == changed_settings(config)


def _is_beside(config: RunConfig, row: PublishedRow, *, stands_for: Mapping[str, str]) -> bool:
    model, dataset, bits = config.model.name, config.dataset.name, config.bits.name
    ours = {"model": stands_for.get(model, model), "bits": stands_for.get(bits, bits)}
    if any(row.at.get(key) not in (None, value) for key, value in ours.items()):
        return False
    if row.at.get("dataset") not in (None, stands_for.get(dataset, dataset)):
        return False
    if config.method_name not in (row.at.get("method"), row.released_as):
        return False
    settings = {key: value for key, value in row.at.items() if key not in _KEYS_OF_CELLS}
    return all(
        _plain(getattr(config.method, key, None)) == value for key, value in settings.items()
    )


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value
