"""Where a model's parts come from: the hub's repositories and the folders that its yaml names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import UserError
from experiments.sampling.hub_cache import HUB_ID, cached_snapshot
from experiments.sampling.single_files import single_file, taken_for
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_WORDS = ("model", "+experiment", "experiment")  # of a command: what says which models


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder, a file or a repository of the hub, and as what it is loaded."""

    path: str
    revision: str | None
    dtype: str
    what: str  # the model's name, or a part's
    part: str = ""  # the one that is loaded of it; '' is the whole pipeline
    besides: tuple[str, ...] = ()  # parts that come from elsewhere
    gated: bool = False
    licence: str | None = None
    weights_bytes: int | None = None
    unpinned: str | None = None  # why no revision is pinned

    @property
    def on_hub(self) -> bool:
        """Whether it is a hub's model: no folder or file of that name is here."""
        return not resolve_path(self.path).exists() and HUB_ID.fullmatch(self.path) is not None

    def folder(self) -> Path | None:
        """Where its files lie, whole or not, or its one file; None where there is nothing."""
        if self.on_hub:
            return cached_snapshot(self.path, self.revision)
        found = resolve_path(self.path)
        return found if found.exists() else None


def sources_of(models: Iterable[ModelConfig]) -> list[Source]:
    """Every folder, file and repository that these models are loaded from, each once.

    Raises:
        UserError: it cannot be told what a single file is a checkpoint of.
    """
    sources = [source for model in models for source in (_main(model), *_more(model))]
    return list(dict.fromkeys(sources))


def _main(model: ModelConfig) -> Source:
    return Source(
        path=model.path,
        revision=model.revision,
        dtype=model.dtype,
        what=model.name,
        besides=tuple(sorted(model.parts)),
        gated=model.gated,
        licence=model.licence,
        weights_bytes=model.weights_bytes,
        unpinned=model.unpinned,
    )


def _more(model: ModelConfig) -> Iterator[Source]:
    """A single file's configs, and the parts that lie by themselves."""
    file = single_file(model.path)
    if file is not None:
        yield Source(
            path=model.configs or taken_for(file),
            revision=None,
            dtype=model.dtype,
            what=f"{model.name}, configs",
            besides=tuple(sorted(model.parts)),
        )
    for name, given in sorted(model.parts.items()):
        path, _, commit = given.partition("@")
        yield Source(
            path=path,
            revision=commit or None,
            dtype=model.dtype,
            what=f"{model.name}, {name}",
            part=name,
        )


def fetch_command(words: Sequence[str], *, config_dirs: Sequence[Path] = ()) -> str:
    """The command that brings what these words of `run` or `check` need."""
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] in _WORDS]
    several = ["-m"] if any("," in word for word in kept) else []
    beside = [word for folder in config_dirs for word in ("--config-dir", str(folder))]
    return shlex.join(["segbench", "fetch", *several, *kept, *beside])


def no_folder(source: Source) -> UserError:
    return UserError(
        f"model.path={source.path}: no such folder; give a folder in diffusers' format, or a hub "
        "model's owner/name"
    )
