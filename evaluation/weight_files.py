"""The files of weights that metrics read: what each is, and where it is looked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluation.feature_cache import file_hash
from evaluation.outside_files import OutsideFile, read_text
from evaluation.records import MetricUnavailable

TABLE = Path(__file__).with_name("weights.yaml")
MISSING = "missing"  # in place of a sha256: once the file is there, the metric is measured again


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What the publisher's file is; None where that is not known."""

    name: str
    needed_by: str
    bytes: int | None
    sha256: str | None
    source: str
    licence: str


@functools.cache
def weight_files() -> Mapping[str, WeightFile]:
    """By name, as `weights.yaml` has them."""
    table: dict[str, dict[str, Any]] = yaml.safe_load(read_text(TABLE))
    return {name: WeightFile(name=name, **known) for name, known in table.items()}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where files of weights are looked for.

    Args:
        folder: holds them under their names; None where none was named.
        more: name of a file -> another folder that is looked into where `folder` lacks it.
        file_key: gives a file's sha256.
    """

    folder: Path | None
    more: Mapping[str, Path]
    file_key: Callable[[Path], str] = file_hash

    def path(self, name: str) -> Path:
        """Where the file lies or, if it is nowhere, belongs."""
        folders = [folder for folder in (self.folder, self.more.get(name)) if folder is not None]
        paths = [folder / name for folder in folders] or [Path(name)]
        return next((path for path in paths if path.is_file()), paths[0])

    def described(self, name: str) -> OutsideFile:
        known = weight_files()[name]
        return OutsideFile(
            path=self.path(name),
            needed_by=known.needed_by,
            origin=known.source,
            size=known.bytes,
            sha256=known.sha256,
        )

    def identity(self, name: str) -> str:
        """The sha256 of the file that is there."""
        path = self.path(name)
        return self.file_key(path) if path.is_file() else MISSING

    def need(self, name: str) -> Path:
        """The file, which is the publisher's.

        Raises:
            MetricUnavailable: it is not there, or another one is.
        """
        file = self.described(name)
        said = _properties(file)
        if not file.path.is_file():
            placed = self.folder is not None or name in self.more
            where = "put it there" if placed else "name its folder: metrics.weights=FOLDER"
            raise MetricUnavailable(
                f"{file.needed_by}: no weights at {file.path}{said}; get it from {file.origin} and "
                f"{where}"
            )
        if file.size not in (None, file.path.stat().st_size):
            raise MetricUnavailable(
                f"{file.path} has {file.path.stat().st_size} bytes; it is no {name}{said}; get it "
                f"from {file.origin}"
            )
        if file.sha256 is not None and self.file_key(file.path) != file.sha256:
            raise MetricUnavailable(
                f"{file.path}: sha256 is {self.file_key(file.path)}; it is no {name}{said}; get it "
                f"from {file.origin}"
            )
        return file.path


def _properties(file: OutsideFile) -> str:
    known = [f"{file.size} bytes"] if file.size is not None else []
    known += [f"sha256 {file.sha256}"] if file.sha256 is not None else []
    return f" ({', '.join(known)})" if known else ""
