"""Numbers that papers print, as data: `published/*.yaml`, one file a source, none without its home.

A row's `at` says which of our cells it is beside: model, bits and method by their keys in conf/,
and settings of the method by their names. A field of the protocol that no source states is the
word `unknown`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.errors import UserError

FOLDER = Path(__file__).parent / "published"
UNKNOWN = "unknown"
PROTOCOL_FIELDS = (
    "dataset",
    "images",
    "prompts",
    "steps",
    "guidance",
    "resolution",
    "dtype",
    "scheduler",
    "noise",
    "image_format",
    "calibration_images",
    "fid_against",
    "fid_implementation",
)
_PROVENANCE = ("source", "read_by", "verified")
_TABLE = ("title", "about", "provenance", "protocol", "columns", "rows")
_ROW = {"at", "values", "name", "released_as", "protocol", "provenance"}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number is printed, who read it there, and whether anybody checked that."""

    source: str
    read_by: str
    verified: bool


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """`released_as`: the method that the authors' released code runs under this row's name."""

    at: Mapping[str, Any]
    name: str
    values: Mapping[str, float | None]  # by column; None: not reported
    protocol: Mapping[str, Any]
    provenance: Provenance
    released_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """`columns`: the paper's column -> the metric here that is nearest to it."""

    key: str
    paper: str
    title: str
    about: str
    columns: Mapping[str, str]
    rows: tuple[PublishedRow, ...]

    @property
    def verified(self) -> bool:
        return all(row.provenance.verified for row in self.rows)


def published_tables() -> list[str]:
    """`source/table` of every table that is there."""
    return [f"{path.stem}/{key}" for path in sorted(FOLDER.glob("*.yaml")) for key in _read(path)]


def published_table(key: str) -> PublishedTable:
    """A table by `source/table`.

    Raises:
        UserError: there is none, or its file is not as it must be.
    """
    source, _, name = key.partition("/")
    path = FOLDER / f"{source}.yaml"
    tables = _read(path) if path.is_file() else {}
    if name not in tables:
        raise UserError(f"no published table {key!r}; there are {', '.join(published_tables())}")
    return tables[name]


@functools.cache
def _read(path: Path) -> dict[str, PublishedTable]:
    return read_published(path)


def read_published(path: Path) -> dict[str, PublishedTable]:
    """The tables of one file.

    Raises:
        UserError: a number without provenance, or whatever else is not as it must be; one line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path.name}: {' '.join(str(error).split())}") from error
    try:
        title, tables = str(content["paper"]["title"]), dict(content["tables"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path.name}: needs paper.title and tables") from error
    return {
        str(key): _table(f"{path.stem}/{key}", table, paper=title) for key, table in tables.items()
    }


def _table(key: str, content: Any, *, paper: str) -> PublishedTable:
    where = f"published/{key}"
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: a table has {', '.join(_TABLE)}")
    lacking = [name for name in _TABLE if name not in (*content, "provenance")]
    if lacking or set(content) - set(_TABLE):
        raise UserError(f"{where}: has {', '.join(content)}; a table has {', '.join(_TABLE)}")
    columns = {str(name): str(metric) for name, metric in content["columns"].items()}
    rows = tuple(
        _row(row, columns=list(columns), table=content, where=f"{where}, row {number}")
        for number, row in enumerate(content["rows"], 1)
    )
    return PublishedTable(
        key=key,
        paper=paper,
        title=str(content["title"]),
        about=_one_line(content["about"]),
        columns=columns,
        rows=rows,
    )


def _row(content: Any, *, columns: list[str], table: Mapping[str, Any], where: str) -> PublishedRow:
    if not isinstance(content, Mapping) or not {"at", "values"} <= set(content) <= _ROW:
        raise UserError(f"{where}: needs at and values, and may have {', '.join(sorted(_ROW))}")
    values = content["values"]
    if not isinstance(values, list) or len(values) != len(columns):
        raise UserError(f"{where}: {values!r} are not {len(columns)} values, one a column")
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{where}: {value!r} is no number; null is what is not reported")
    own = content.get("provenance", table.get("provenance"))
    protocol = {**table["protocol"], **content.get("protocol", {})}
    if set(protocol) != set(PROTOCOL_FIELDS):
        wrong = sorted(set(protocol) ^ set(PROTOCOL_FIELDS))
        raise UserError(
            f"{where}: its protocol lacks or does not have {', '.join(wrong)}; "
            f"what no source states is {UNKNOWN!r}"
        )
    at = dict(content["at"])
    return PublishedRow(
        at=at,
        name=str(content.get("name") or " ".join(map(str, at.values()))),
        values=dict(zip(columns, values, strict=True)),
        protocol=protocol,
        provenance=_provenance(own, where=where),
        released_as=content.get("released_as"),
    )


def _provenance(content: Any, *, where: str) -> Provenance:
    given = content if isinstance(content, Mapping) else {}
    lacking = [name for name in _PROVENANCE if given.get(name) in (None, "")]
    if lacking or not isinstance(given["verified"], bool):
        raise UserError(
            f"{where}: a number without provenance ({', '.join(lacking) or 'verified'}); "
            "a published number says its source, who read it there (read_by) and whether that "
            "was verified (true or false)"
        )
    return Provenance(
        source=_one_line(given["source"]),
        read_by=_one_line(given["read_by"]),
        verified=given["verified"],
    )


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())
