"""A copy of a model's files elsewhere: another hub cache, or a folder with the same files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from experiments.errors import UserError
from experiments.readiness.repository_files import INDEX, Listing, RepositoryFile
from experiments.sampling.hub_cache import COMMIT, cached_snapshot, repository_name
from experiments.sampling.model_folder import pipeline_index

_METADATA = Path(".cache", "huggingface", "download")  # what `hf download --local-dir` leaves
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_COPIED_BYTES = 16 * 2**20  # at a time


def list_mirror(folder: Path, repository: str, revision: str | None) -> Listing:
    """What a mirror has, with the checksums that it states.

    A mirror is a hub cache (`models--owner--name` in it), or a folder with the repository's files,
    itself or as `owner/name` in it; `hf download --local-dir` notes commit and checksums there.

    Raises:
        UserError: it has no such model, or nothing says of which commit its files are.
    """
    files = mirrored_folder(folder, repository, revision)
    noted = _notes(files)
    commits = {commit for commit, _ in noted.values()}
    if COMMIT.fullmatch(files.name):
        commits.add(files.name)
    if not commits and revision is not None and COMMIT.fullmatch(revision):
        commits.add(revision)
    if len(commits) != 1:
        said = " and ".join(sorted(commits)) or "no commit"
        raise UserError(
            f"--from {folder}: {files} names {said}; say of which commit the files are with "
            "model.revision=COMMIT"
        )
    (commit,) = commits
    if revision is not None and COMMIT.fullmatch(revision) and commit != revision:
        raise UserError(
            f"--from {folder}: its files are of commit {commit}, and model.revision={revision}"
        )
    names = sorted(
        str(path.relative_to(files))
        for path in files.rglob("*")
        if path.is_file() and not path.relative_to(files).parts[0].startswith(".")
    )
    return Listing(
        repository=repository,
        commit=commit,
        files=tuple(_file(files, name, noted) for name in names),
        index=pipeline_index(files) if INDEX in names else None,
    )


def mirrored_folder(folder: Path, repository: str, revision: str | None) -> Path:
    """Where a mirror's files lie.

    Raises:
        UserError: it has none of this model.
    """
    folder = folder.expanduser()
    for root in (folder, folder.parent, folder / "hub"):
        if root != folder.parent or folder.name == repository_name(repository):
            found = cached_snapshot(repository, revision, root=root)
            if found is not None:
                return found
    for found in (folder / repository, folder):
        if any((found / name).is_file() for name in (INDEX, "config.json")):
            return found
    at = "" if revision is None else f" at model.revision={revision}"
    raise UserError(
        f"--from {folder}: it has no {repository}{at}; give a hub cache with "
        f"{repository_name(repository)} in it, or a folder with the model's files"
    )


def copy_from_mirror(files: Path, file: RepositoryFile, partial: Path) -> None:
    """Appends to a part of the file what is still missing of it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with (files / file.name).open("rb") as source, partial.open("ab") as stream:
            source.seek(stream.tell())
            shutil.copyfileobj(source, stream, _COPIED_BYTES)
    except OSError as error:
        said = error.strerror or error
        raise UserError(
            f"{files / file.name}: cannot be copied ({said}); what has come is kept: give the "
            "same command again"
        ) from error


def _file(files: Path, name: str, noted: dict[str, tuple[str, str]]) -> RepositoryFile:
    """With the checksum that names a cache's blob, or that was noted when it was downloaded."""
    path = files / name
    blob = path.resolve()
    stated = blob.name if blob.parent.name == "blobs" else noted.get(name, ("", ""))[1]
    return RepositoryFile(
        name=name,
        size=path.stat().st_size,
        sha256=stated if _SHA256.fullmatch(stated) else None,
        git_sha1=stated if _SHA1.fullmatch(stated) else None,
    )


def _notes(files: Path) -> dict[str, tuple[str, str]]:
    """File -> commit and checksum, as a download into a folder of one's own left them."""
    notes = {}
    for path in (files / _METADATA).rglob("*.metadata"):
        lines = path.read_text(errors="replace").split()
        if len(lines) > 1 and COMMIT.fullmatch(lines[0]):
            name = str(path.relative_to(files / _METADATA)).removesuffix(".metadata")
            notes[name] = (lines[0], lines[1])
    return notes
