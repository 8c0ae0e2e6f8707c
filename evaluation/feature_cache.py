"""Arrays kept under a name made of the contents they were computed from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_CACHE_VERSION = "v1"
_PACKAGES = ("torch", "clean-fid", "open_clip_torch", "pillow")  # an upgrade may change features


def folder_contents(folder: Path, *, ids: Sequence[str]) -> list[str]:
    """`id=sha256` of each image: what the features of a folder depend on."""
    return [f"{name}={file_hash(folder / f'{name}.png')}" for name in ids]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_array(
    cache: Path | None,
    *,
    kind: str,
    parts: Sequence[str],
    compute: Callable[[], np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:
    """`compute()`, or what an earlier call with the same `kind` and `parts` left in `cache`.

    The versions of the packages that make features are part of the name. The file is written under
    another name and renamed, so that two processes may fill one cache. None: nothing is kept.
    """
    if cache is None:
        return compute()
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in _PACKAGES]
    text = "\0".join((_CACHE_VERSION, kind, *versions, *parts))
    path = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    if path.is_file():
        try:
            stored: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
        except (ValueError, OSError) as error:
            logger.warning("%s cannot be read and is made again: %s", path, error)
        else:
            return stored
    array = compute()
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return array
