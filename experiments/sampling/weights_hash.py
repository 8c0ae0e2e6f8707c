"""Which weights a model's folder holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from experiments.store.digests import HASH_LENGTH
from experiments.store.file_hashes import FileHashes

_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model", ".gz")


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
