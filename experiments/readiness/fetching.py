"""What of a model has to be brought, from where, and bringing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.readiness.cached_files import (
    Bring,
    bytes_here,
    is_there,
    matches,
    put_files,
    snapshot_of,
)
from experiments.readiness.check_lines import size
from experiments.readiness.hub_listing import bring_from_hub, list_hub
from experiments.readiness.model_mirror import copy_from_mirror, list_mirror, mirrored_folder
from experiments.readiness.repositories import Source
from experiments.readiness.repository_files import Listing, RepositoryFile, is_weights
from experiments.readiness.weights_there import states_of
from experiments.sampling.hub_cache import cache_root, repository_name


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """A repository's files that a run loads, weights last: while they lack, nothing looks whole."""

    source: Source
    listing: Listing
    files: tuple[RepositoryFile, ...]
    bring: Bring | None  # None: all of it is here

    @property
    def size(self) -> int:
        return sum(file.size or 0 for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        files = [
            {
                "name": file.name,
                "bytes": file.size,
                "sha256": file.sha256,
                "git_sha1": file.git_sha1,
                "bytes_here": bytes_here(self.listing, file),
                "there": is_there(self.listing, file),
            }
            for file in self.files
        ]
        return {"commit": self.listing.commit, "folder": str(snapshot_of(self.listing))} | {
            "files": files
        }

    def describe(self) -> list[str]:
        """A line a file, their sum, and what pins the commit."""
        missing = [file for file in self.files if not is_there(self.listing, file)]
        lines = [self._line(file) for file in self.files]
        come = sum((file.size or 0) - bytes_here(self.listing, file) for file in missing)
        lines.append(
            f"{self.source.path}: {len(self.files)} files, {size(self.size)}; "
            f"{len(missing)} missing, {size(come)} to come"
        )
        return [*lines, self.pin()]

    def pin(self) -> str:
        """The line that the model's yaml takes."""
        given = self.source.revision == self.listing.commit
        said = "pinned" if given else f"pin it with model.revision={self.listing.commit}"
        return f"{self.source.path}: commit {self.listing.commit}, {said}"

    def done(self) -> str:
        return f"{self.source.path}: {len(self.files)} files, {size(self.size)}, checksums right"

    def run(self, note: Callable[[str], None]) -> None:
        """Brings what is missing; nothing where all is here.

        Raises:
            UserError: as `put_files`.
        """
        if self.bring is not None:
            revision = self.source.revision
            put_files(self.listing, self.files, revision=revision, bring=self.bring, note=note)

    def _line(self, file: RepositoryFile) -> str:
        here = bytes_here(self.listing, file)
        state = "there" if is_there(self.listing, file) else f"{size(here)} of it" if here else "-"
        checksum = f"sha256 {file.sha256}" if file.sha256 else f"git {file.git_sha1 or 'unknown'}"
        return f"{state:<16} {size(file.size or 0):>9}  {checksum}  {file.name}"


def plan_fetch(
    source: Source, *, mirror: Path | None, read: bool, note: Callable[[str], None]
) -> Fetch:
    """What a run loads of a repository, and how it is brought.

    Args:
        mirror: where to copy from in the hub's place.
        read: whether what is here is read against its checksums; else sizes are looked at.

    Raises:
        UserError: neither the hub nor the mirror can say.
    """
    if mirror is not None:
        listing = list_mirror(mirror, source.path, source.revision)
        files = mirrored_folder(mirror, source.path, source.revision)
        return _fetch(source, listing, partial(copy_from_mirror, files))
    here = _whole_here(source, read=read, note=note)
    if here is not None:
        return _fetch(source, here, None)
    try:
        listing = list_hub(source.path, source.revision)
    except UserError as error:
        raise UserError(f"{error}{_known_here(source)}") from error
    return _fetch(source, listing, partial(bring_from_hub, listing))


def _fetch(source: Source, listing: Listing, bring: Bring | None) -> Fetch:
    wanted = _wanted(source, listing)
    files = sorted(wanted, key=lambda file: (is_weights(file.name), file.name))
    if not files:
        raise UserError(
            f"model.path={source.path}: it holds no files of a diffusers pipeline or part "
            f"(commit {listing.commit})"
        )
    return Fetch(source=source, listing=listing, files=tuple(files), bring=bring)


def _wanted(source: Source, listing: Listing) -> list[RepositoryFile]:
    return listing.wanted(dtype=source.dtype, part=source.part, besides=source.besides)


def _whole_here(source: Source, *, read: bool, note: Callable[[str], None]) -> Listing | None:
    """What the cache has, if that is all that a run loads and, where it is read, as it was."""
    folder = source.folder()
    if folder is None:
        return None
    try:
        states = states_of(source, folder)
        listing = list_mirror(cache_root() / repository_name(source.path), source.path, folder.name)
    except UserError as error:
        note(str(error))
        return None
    if not states or not all(state.whole for state in states):
        return None
    for file in _wanted(source, listing) if read else ():
        if not matches(folder / file.name, file):
            note(f"{folder / file.name}: is not what its checksum says; it is fetched again")
            return None
    return listing


def _known_here(source: Source) -> str:
    """What can be said without the hub, for a line that says it did not answer."""
    folder = source.folder()
    if folder is None:
        known = "" if source.weights_bytes is None else f", {size(source.weights_bytes)} in all"
        return f"; nothing of it is here{known}"
    lacking = [state.name for state in states_of(source, folder) if not state.whole]
    return f"; here it lacks {', '.join(lacking)}" if lacking else ""
