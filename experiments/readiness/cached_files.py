"""Files put into the hub's cache, each whole and of its checksum or not at all.

What is on its way lies as `blobs/CHECKSUM.incomplete`: a killed call's part is gone on with. (The
hub's own client throws it away since version 1.) A file is renamed to `blobs/CHECKSUM` only after
it has been read and found to be what the checksum says, and only then linked into the snapshot.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.errors import UserError
from experiments.readiness.repository_files import Listing, RepositoryFile
from experiments.sampling.hub_cache import (
    COMMIT,
    SNAPSHOTS,
    cache_root,
    default_revision,
    repository_name,
)
from experiments.store.digests import file_digest
from experiments.store.folders import write_text
from experiments.store.lock import locked

INCOMPLETE = ".incomplete"
SPARE_BYTES = 50_000_000  # a disk that is full to the last byte stops others
_READ_BYTES = 2**20  # at a time
Bring = Callable[[RepositoryFile, Path], None]  # appends what is missing to a part of the file


def snapshot_of(listing: Listing) -> Path:
    return cache_root() / repository_name(listing.repository) / SNAPSHOTS / listing.commit


def blob_of(listing: Listing, file: RepositoryFile) -> Path:
    """Where its contents go: by checksum; by name where the checksum is not known yet."""
    name = file.checksum or hashlib.sha256(f"{listing.commit}/{file.name}".encode()).hexdigest()
    return cache_root() / repository_name(listing.repository) / "blobs" / name


def bytes_here(listing: Listing, file: RepositoryFile) -> int:
    """Bytes of a file that have come; all of them where it is there. Looks at sizes alone."""
    for path in (snapshot_of(listing) / file.name, blob_of(listing, file)):
        if path.is_file() and file.size in (None, path.stat().st_size):
            return path.stat().st_size
    part = _part(blob_of(listing, file))
    return min(part.stat().st_size, file.size or 0) if part.is_file() else 0


def is_there(listing: Listing, file: RepositoryFile) -> bool:
    """Whether the snapshot has it in its size."""
    path = snapshot_of(listing) / file.name
    return path.is_file() and file.size in (None, path.stat().st_size)


def matches(path: Path, file: RepositoryFile) -> bool:
    """Whether a file's contents are what the checksum says, or the size where there is none."""
    if file.size is not None and path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return file_digest(path) == file.sha256
    return file.git_sha1 is None or _git_sha1(path) == file.git_sha1


def check_room(listing: Listing, files: Iterable[RepositoryFile]) -> None:
    """Refuses before the first byte what the cache's disk has no room for.

    Raises:
        UserError: says what is needed and what is free.
    """
    needed = sum((file.size or 0) - bytes_here(listing, file) for file in files)
    root = nearest_folder(cache_root())
    free = shutil.disk_usage(root).free
    if needed and free < needed + SPARE_BYTES:
        raise UserError(
            f"{listing.repository}: {needed / 1e9:.2f} GB are to come and {root} has "
            f"{free / 1e9:.2f} GB free; free some, or name another folder with HF_HUB_CACHE=..."
        )


def put_files(
    listing: Listing,
    files: Iterable[RepositoryFile],
    *,
    revision: str | None,
    bring: Bring,
    note: Callable[[str], None],
) -> Path:
    """Brings files into the snapshot; two calls at once bring each file once.

    Returns:
        The snapshot's folder.

    Raises:
        UserError: no room, a folder that cannot be written, or contents of another checksum.
    """
    check_room(listing, files)
    name = repository_name(listing.repository)
    try:
        (cache_root() / ".locks" / name).mkdir(parents=True, exist_ok=True)
        with locked(cache_root() / ".locks" / name / "segbench_fetch.lock"):
            given = default_revision(revision)
            ref = None if COMMIT.fullmatch(given) else cache_root() / name / "refs" / given
            if ref is not None and not ref.exists():  # half a model is better known than none
                write_text(ref, listing.commit)
            for file in files:
                _put(listing, file, bring=bring, note=note)
            if ref is not None:  # only now, or half a model would hide the one that was there
                write_text(ref, listing.commit)
    except OSError as error:
        raise UserError(
            f"{cache_root()}: {error.strerror or error}; free some space or make it writable, and "
            "give the same command again: it goes on where it stopped"
        ) from error
    return snapshot_of(listing)


def _put(
    listing: Listing, file: RepositoryFile, *, bring: Bring, note: Callable[[str], None]
) -> None:
    link, blob = snapshot_of(listing) / file.name, blob_of(listing, file)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if link.is_file() and matches(link, file):
        return
    if blob.is_file() and not matches(blob, file):
        note(f"{file.name}: {blob} is damaged; it is fetched again")
        blob.unlink()
    if not blob.is_file():
        _bring_whole(blob, file, bring=bring, note=note)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:  # a file system without links
        os.replace(blob, link)


def _bring_whole(
    blob: Path, file: RepositoryFile, *, bring: Bring, note: Callable[[str], None]
) -> None:
    part = _part(blob)
    begun = part.stat().st_size if part.is_file() else 0
    if begun and (file.checksum is None or begun > (file.size or begun)):
        part.unlink()  # nothing says that it is of the same file
        begun = 0
    note(f"{file.name}: {_size(file.size)}{f', from {_size(begun)} on' if begun else ''}")
    bring(file, part)
    if begun and not matches(part, file):
        note(f"{file.name}: what was there of it was damaged; it is fetched from its beginning")
        part.unlink()
        bring(file, part)
    if not matches(part, file):
        found = file_digest(part)
        part.unlink()
        raise UserError(
            f"{file.name}: what came has sha256 {found[:12]}..., and {(file.checksum or '')[:12]}"
            "... was to come; it is removed: give the same command again, or another mirror"
        )
    os.replace(part, blob)


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}{INCOMPLETE}")


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _git_sha1(path: Path) -> str:
    """As git names a blob."""
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_READ_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _size(count: int | None) -> str:
    if count is None:
        return "of unknown size"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
