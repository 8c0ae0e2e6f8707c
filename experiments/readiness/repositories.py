"""Where a model's parts come from: the hub's repositories and the folders that its yaml names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.errors import UserError
from experiments.sampling.hub_cache import HUB_ID, cached_snapshot
from experiments.store.paths import resolve_path

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_WORDS = ("model", "+experiment", "experiment")  # of a command: what says which models


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder or a repository of the hub, and as what it is loaded."""

    path: str
    revision: str | None
    dtype: str
    what: str  # the model's name, or a part's
    gated: bool
    licence: str | None
    weights_bytes: int | None

    @property
    def on_hub(self) -> bool:
        """Whether it is a hub's model: no folder or file of that name is here."""
        return not resolve_path(self.path).exists() and HUB_ID.fullmatch(self.path) is not None

    def folder(self) -> Path | None:
        """Where its files lie, whole or not; None where there are none."""
        if self.on_hub:
            return cached_snapshot(self.path, self.revision)
        found = resolve_path(self.path)
        return found if found.exists() else None


def sources_of(models: Iterable[ModelConfig]) -> list[Source]:
    """Every folder and repository that these models are loaded from, each once."""
    sources = []
    for model in models:
        whole = Source(
            path=model.path,
            revision=model.revision,
            dtype=model.dtype,
            what=model.name,
            gated=model.gated,
            licence=model.licence,
            weights_bytes=model.weights_bytes,
        )
        sources.append(whole)
        for name, path in model.parts.items():
            sources.append(
                Source(
                    path=path,
                    revision=None,
                    dtype=model.dtype,
                    what=f"{model.name}, {name}",
                    gated=False,
                    licence=None,
                    weights_bytes=None,
                )
            )
    return list(dict.fromkeys(sources))


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
