"""Which of a pipeline's files are here, part by part, and whether they are whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from evaluation.outside_files import read_json_object
from experiments.readiness.check_lines import Finding, State, size
from experiments.readiness.repositories import Source
from experiments.readiness.repository_files import (
    INDEX,
    is_weights,
    part_folders,
    shard_list,
    wanted_files,
)
from experiments.readiness.tensor_files import read_tensor_file
from experiments.sampling.model_folder import pipeline_index


@dataclass(kw_only=True)
class PartState:
    """A part of a pipeline, as it lies in a folder."""

    name: str
    files: list[Path] = field(default_factory=list)  # that a run loads
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what is said of a file that is not whole

    @property
    def whole(self) -> bool:
        return not self.missing and not self.wrong

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def weights(self) -> list[Path]:
        return [path for path in self.files if is_weights(path.name)]


def states_of(source: Source, folder: Path) -> list[PartState]:
    """Every part that a run loads of a folder in diffusers' format, or of one part's own folder.

    Raises:
        UserError: its index is damaged.
    """
    names = _names(folder)
    index = pipeline_index(folder) if INDEX in names and not source.part else None
    only, besides = source.part, source.besides
    wanted = wanted_files(names, index=index, dtype=source.dtype, part=only, besides=besides)
    states = []
    for part in part_folders(names, index=index, part=only, besides=besides):
        own = sorted(name for name in wanted if _parent(name) == part)
        state = PartState(name=part or folder.name, files=[folder / name for name in own])
        _look_into(state, folder, part=part, own=own)
        states.append(state)
    return states


def describe_parts(states: Sequence[PartState], *, command: str) -> list[Finding]:
    """A line a part, and their sum."""
    findings = []
    for state in states:
        said = [f"{name} is missing" for name in state.missing] + state.wrong
        what = f"{state.name}: {'; '.join(said) if said else f'there, {size(state.size)}'}"
        findings.append(
            Finding(
                group="weights",
                what=what,
                state=State.ok if state.whole else State.missing,
                command="" if state.whole else command,
            )
        )
    return findings


def _look_into(state: PartState, folder: Path, *, part: str, own: Sequence[str]) -> None:
    base = folder / part
    if not own:
        state.missing.append("all of it")
        return
    weights = [name for name in own if is_weights(name)]
    listed = shard_list(own)
    for name in listed:
        try:
            shards = read_json_object(folder / name).get("weight_map")
            names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        except (ValueError, TypeError) as error:
            state.wrong.append(str(error))
            continue
        state.missing += [shard for shard in names if not (base / str(shard)).is_file()]
    if (base / "config.json").is_file() and not weights and not listed:
        state.missing.append("its weights (.safetensors)")
    if weights and not (base / "config.json").is_file():
        state.missing.append("config.json")
    for name in weights:
        if name.endswith(".safetensors"):
            _check_whole(state, folder / name)


def _check_whole(state: PartState, path: Path) -> None:
    try:
        stated = read_tensor_file(path).file_bytes
    except ValueError as error:
        state.wrong.append(str(error))
        return
    there = path.stat().st_size
    if there != stated:
        state.wrong.append(f"{path.name} has {there} bytes and its header says {stated}")


def _names(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it; a link that leads nowhere is no file."""
    names = []
    for inner, folders, files in os.walk(folder, followlinks=True):
        if Path(inner) != folder:
            folders.clear()
        paths = (Path(inner) / name for name in files)
        names += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
    return names


def _parent(name: str) -> str:
    parent = PurePosixPath(name).parent
    return "" if parent == PurePosixPath(".") else str(parent)
