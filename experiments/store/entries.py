"""What lies under a name where something else should: set aside, removed, replaced by a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether anything has this name, a link to nowhere too."""
    return os.path.lexists(path)


def remove(path: Path) -> None:
    """Whatever it is; a link's target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keeps what is damaged under another name, so that it can be made again."""
    os.replace(path, path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}"))


def clear_way(path: Path) -> None:
    """For a file to be written: what no file can replace is set aside."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path)


def ensure_folder(folder: Path, *, below: Path) -> None:
    """Creates a folder; what has its name, or that of one on the way from `below`, is set aside."""
    below.mkdir(parents=True, exist_ok=True)
    path = below
    for part in folder.relative_to(below).parts:
        path /= part
        if is_there(path) and not path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                set_aside(path)
        path.mkdir(exist_ok=True)
