"""Where the hub's client keeps models on this machine.

`models--owner--name/` holds `blobs/` (contents, by checksum), `snapshots/COMMIT/` (files as links
to blobs) and `refs/` (a branch's or tag's name -> commit).
"""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
SNAPSHOTS = "snapshots"
_DEFAULT_REVISION = "main"
_MOST_BYTES = 200  # of a ref


def cache_root() -> Path:
    """The cache's folder, which HF_HUB_CACHE or HF_HOME may have named."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_name(repository: str) -> str:
    """What the cache calls the folder of `owner/name`."""
    return f"models--{repository.replace('/', '--')}"


def cached_snapshot(
    repository: str, revision: str | None, *, root: Path | None = None
) -> Path | None:
    """A commit's files in the cache, whole or not; None where there are none of it.

    Args:
        revision: a commit, branch or tag; None is the main branch as it was when it was fetched.
        root: another cache than this machine's.
    """
    folder = (root or cache_root()) / repository_name(repository)
    name = revision or _DEFAULT_REVISION
    if COMMIT.fullmatch(name) is None:
        name = _commit_of(folder, name)
    found = folder / SNAPSHOTS / name
    return found if name and found.is_dir() else None


def default_revision(revision: str | None) -> str:
    return revision or _DEFAULT_REVISION


def _commit_of(folder: Path, revision: str) -> str:
    """What a branch or tag stood for when it was fetched; empty where that is not known."""
    path = folder / "refs" / revision
    try:
        if ".." in revision or path.stat().st_size > _MOST_BYTES:
            return ""
        commit = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return commit if COMMIT.fullmatch(commit) else ""
