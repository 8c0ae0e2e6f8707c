"""Which weights a model has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.sampling.model_folder import check_folder, pipeline_index
from experiments.sampling.model_parts import Part, given_parts
from experiments.sampling.single_files import single_file
from experiments.store.digests import HASH_LENGTH, digest
from experiments.store.file_hashes import FileHashes

if TYPE_CHECKING:
    from experiments.config.run_config import ModelConfig

_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model", ".gz")


def model_hash(config: ModelConfig, *, files: FileHashes) -> str:
    """Identifies all weights and configs of a model: its folder, single file and other parts.

    The adapter is no part of it: it stands in the key beside its scale.
    """
    folder = check_folder(config)
    own, file = weights_hash(folder, files=files), single_file(config.path)
    parts = given_parts(config, folder, pipeline_index(folder))
    if file is None and not parts:
        return own
    others = {name: part_hash(part, files=files) for name, part in parts.items()}
    sha256 = None if file is None else files.of(file)
    files.keep()
    return digest({"folder": own, "file": sha256, "parts": others})


def part_hash(part: Part, *, files: FileHashes) -> str:
    """Identifies a part that comes from elsewhere: by its folder, or its file beside its config."""
    own = weights_hash(part.folder, files=files)
    return own if part.file is None else digest([own, files.of(part.file)])


def weights_hash(folder: Path, *, files: FileHashes) -> str:
    """Identifies a pipeline folder by the contents of its configs and weights."""
    state = hashlib.sha256()
    paths = (
        Path(inner) / name
        for inner, _, names in os.walk(folder, followlinks=True)  # parts may be links to elsewhere
        for name in names
    )
    for path in sorted(paths):
        if path.is_file() and path.suffix in _WEIGHTS:
            state.update(f"{path.relative_to(folder)}\0{files.of(path)}\0".encode())
    files.keep()
    return state.hexdigest()[:HASH_LENGTH]
