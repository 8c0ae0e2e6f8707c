"""Which files of a model's repository a run loads: one format, one variant, no duplicates."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from experiments.sampling.model_folder import DENOISERS, SAFETY_CHECKER

INDEX = "model_index.json"
PLAIN = ""  # the variant of files that name none
# What diffusers and transformers call a network's files and its lists of shards.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<before>\w+))?"
    r"(?:-\d+-of-\d+)?(?:\.(?P<after>\w+))?\.(?P<format>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<listed>\w+))?\.json)?"
)
_FORMATS = ("safetensors", "bin")  # the first that is there
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # configs and tokenizers
# Of a dtype, the variants that are read in place of plain weights, the best first.
_VARIANTS = {"float16": ("fp16", PLAIN), "bfloat16": ("bf16", PLAIN), "float32": (PLAIN,)}


@dataclass(frozen=True, kw_only=True)
class RepositoryFile:
    """A file of a repository; what is not known of it is None."""

    name: str  # its path there
    size: int | None
    sha256: str | None = None  # of what lies in large-file storage
    git_sha1: str | None = None  # of the others: git's name of the blob

    @property
    def checksum(self) -> str | None:
        """What the hub's cache calls its blob."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a hub, a mirror or a folder has of a model at a commit."""

    repository: str
    commit: str
    files: tuple[RepositoryFile, ...]
    index: Mapping[str, Any] | None  # of a pipeline: its parts; None where it cannot be read
    gated: bool = False
    licence: str | None = None

    def wanted(
        self, *, dtype: str, part: str = "", besides: Collection[str] = ()
    ) -> list[RepositoryFile]:
        """The files that a run in this dtype loads, as `wanted_files` has them."""
        names = [file.name for file in self.files]
        wanted = wanted_files(names, index=self.index, dtype=dtype, part=part, besides=besides)
        return [file for file in self.files if file.name in wanted]


def wanted_files(
    names: Collection[str],
    *,
    index: Mapping[str, Any] | None,
    dtype: str,
    part: str = "",
    besides: Collection[str] = (),
) -> set[str]:
    """The files that a run loads, of all that a repository has.

    Every part's configs and tokenizer files, and of its weights one format (safetensors where there
    are any) and one variant: the dtype's where every part that has no plain weights has it.

    Args:
        part: the one part that is loaded of it; '' is the whole pipeline.
        besides: parts that come from elsewhere.
    """
    folders = part_folders(names, index=index, part=part, besides=besides)
    if part:
        dtype = ""  # a part by its own is read without a variant where it can be
    networks = {
        folder: weights
        for folder in folders
        if f"{_prefix(folder)}config.json" in names and (weights := _weights(names, folder))
    }
    variant = _chosen_variant(networks, dtype=dtype)
    wanted = set() if part else {INDEX} & set(names)
    for folder in folders:
        for name in names:
            path = PurePosixPath(name)
            weighty = _WEIGHTS.fullmatch(path.name) is not None
            if _folder(path) == folder and path.suffix in _BESIDE and not weighty:
                wanted.add(name)
        wanted |= _of_variant(networks.get(folder, {}), variant)
    return wanted


def part_folders(
    names: Collection[str],
    *,
    index: Mapping[str, Any] | None,
    part: str = "",
    besides: Collection[str] = (),
) -> list[str]:
    """Folders of the parts that a run loads; '' where the repository is one part by itself."""
    if "config.json" in names and (part or INDEX not in names):
        return [""]
    if part:
        return [part]
    if index is None:
        folders = {_folder(PurePosixPath(name)) for name in names} - {""}
        found = sorted(name for name in folders if "/" not in name)
    else:
        found = [
            name
            for name, kind in index.items()
            if not name.startswith("_") and isinstance(kind, list) and all(kind)
        ]
    return [name for name in found if name != SAFETY_CHECKER and name not in besides]


def shard_list(names: Collection[str]) -> list[str]:
    """Those of some files that are lists of shards."""
    matches = {name: _WEIGHTS.fullmatch(PurePosixPath(name).name) for name in names}
    return [name for name, match in matches.items() if match is not None and match["index"]]


def is_weights(name: str) -> bool:
    """Whether it is a network's weights, or a shard of them."""
    match = _WEIGHTS.fullmatch(PurePosixPath(name).name)
    return match is not None and not match["index"]


def _weights(names: Collection[str], folder: str) -> dict[str, dict[str, set[str]]]:
    """Variant -> format -> files, lists of shards among them."""
    found: dict[str, dict[str, set[str]]] = {}
    for name in names:
        path = PurePosixPath(name)
        match = _WEIGHTS.fullmatch(path.name)
        if match is None or _folder(path) != folder:
            continue
        variant = match["before"] or match["after"] or match["listed"] or PLAIN
        found.setdefault(variant, {}).setdefault(match["format"], set()).add(name)
    return found


def _chosen_variant(
    networks: Mapping[str, Mapping[str, dict[str, set[str]]]], *, dtype: str
) -> str:
    """As diffusers will be asked for it: what every part without plain weights has."""
    known = {variant for weights in networks.values() for variant in weights}
    rest = sorted(known, key=lambda name: (name != "fp16", name))
    for variant in dict.fromkeys((*_VARIANTS.get(dtype, (PLAIN,)), *rest)):
        everywhere = all(variant in found or PLAIN in found for found in networks.values())
        denoisers = [w for f, w in networks.items() if f.startswith(DENOISERS)]
        if everywhere and all(variant in found for found in denoisers) and variant in known:
            return variant
    return PLAIN


def _of_variant(weights: Mapping[str, Mapping[str, set[str]]], variant: str) -> set[str]:
    formats = weights.get(variant) or weights.get(PLAIN) or {}
    return next((formats[name] for name in _FORMATS if name in formats), set())


def _folder(path: PurePosixPath) -> str:
    return "" if path.parent == PurePosixPath(".") else str(path.parent)


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""
