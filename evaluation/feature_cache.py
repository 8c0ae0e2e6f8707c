"""Arrays kept under a name made of the contents they were computed from."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_CACHE_VERSION = "v3"  # 3: with a checksum of name and data before the data
_CHECKSUM_BYTES = 32
_MADE_BY = ("clip_evaluator.py", "extractors.py", "similarity.py")  # and the judges
_PACKAGES = (  # an upgrade may change features
    *("torch", "torchvision", "torchmetrics", "clean-fid", "open_clip_torch", "transformers"),
    *("timm", "tokenizers", "pillow"),
)


@functools.cache
def judges_source() -> str:
    """The sha256 of the code that features and scores are made by: an edit makes them again."""
    here = Path(__file__).parent
    state = hashlib.sha256()
    for path in (*sorted((here / "judges").glob("*.py")), *(here / name for name in _MADE_BY)):
        state.update(path.read_bytes())
    return state.hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_array(
    cache: Path | None,
    *,
    kind: str,
    parts: Iterable[str],
    compute: Callable[[], np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:
    """`compute()`, or what an earlier call with the same `kind` and `parts` left in `cache`.

    The versions of the packages that make features are part of the name. The file is written under
    another name and renamed, so that two processes may fill one cache. None: nothing is kept, and
    `parts` are not asked for.
    """
    if cache is None:
        return compute()
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in _PACKAGES]
    text = "\0".join((_CACHE_VERSION, kind, *versions, *parts))
    path = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
    stored = _read(path)
    if stored is not None:
        return stored
    array = compute()
    _write(path, array)
    return array


def is_whole(path: Path) -> bool:
    """Whether a file of a cache is what was written."""
    try:
        _checked(path)
    except (ValueError, OSError):
        return False
    return True


def _read(path: Path) -> np.ndarray[Any, Any] | None:
    """What `_write` left; a damaged file is said and counts as not there."""
    try:
        stored: np.ndarray[Any, Any] = np.load(io.BytesIO(_checked(path)), allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError) as error:
        logger.warning("%s is damaged and is made again: %s", path, error)
        return None
    return stored


def _checked(path: Path) -> bytes:
    content = path.read_bytes()
    checksum, data = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if _seal(path, data) != checksum:
        raise ValueError("not what was written")
    return data


def _seal(path: Path, data: bytes) -> bytes:
    """The name is in it, which says what the data were computed from."""
    return hashlib.sha256(path.name.encode() + data).digest()


def _write(path: Path, array: np.ndarray[Any, Any]) -> None:
    """The checksum, then the array as `np.save` writes it; whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        os.replace(path, path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}"))
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(_seal(path, data) + data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
