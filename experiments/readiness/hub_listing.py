"""What the hub has of a model, and its files one by one: through huggingface_hub's client."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

from experiments.errors import UserError
from experiments.readiness.repository_files import INDEX, Listing, RepositoryFile
from experiments.sampling.hub_cache import default_revision

_OF_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
_OFFLINE = (
    "HF_HUB_OFFLINE is set: unset it, or fetch where there is internet, or with --from FOLDER "
    "from a copy of the files"
)


def list_hub(repository: str, revision: str | None) -> Listing:
    """Names, sizes and checksums of a commit's files; of contents, the pipeline's index alone.

    Raises:
        UserError: no network, no such model or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(
            repository, revision=default_revision(revision), files_metadata=True
        )
    except Exception as error:  # the client's, its transport's, the system's
        raise refusal(error, repository, revision=revision) from error
    files = tuple(_file(sibling) for sibling in info.siblings or ())
    card = getattr(info, "card_data", None)
    return Listing(
        repository=repository,
        commit=str(info.sha),
        files=files,
        index=_index(repository, str(info.sha), files),
        gated=bool(info.gated),
        licence=None if card is None else _licence(card),
    )


def bring_from_hub(listing: Listing, file: RepositoryFile, partial: Path) -> None:
    """Appends to a part of the file what is still missing of it.

    Raises:
        UserError: the hub refuses it or the connection breaks; the part is kept.
    """
    from huggingface_hub.file_download import http_get

    begun = partial.stat().st_size if partial.exists() else 0
    try:
        with partial.open("ab") as stream:
            stream.seek(begun)
            http_get(
                _address(listing.repository, listing.commit, file.name),
                stream,
                resume_size=begun,
                headers={**_headers(), "Accept-Encoding": "identity"},
                expected_size=file.size,
            )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
            raise
        raise refusal(error, listing.repository, revision=listing.commit, file=file.name) from error


def has_token() -> bool:
    """Whether the hub's client has one, of the environment or of a login; nobody is told it."""
    from huggingface_hub import get_token

    return get_token() is not None


def page(repository: str) -> str:
    """Where a model's licence is agreed to."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def refusal(
    error: Exception, repository: str, *, revision: str | None, file: str = ""
) -> UserError:
    """What the client's error means for the user, in one line."""
    from huggingface_hub import errors

    what = f"{repository}{f'/{file}' if file else ''}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{what}: {_OFFLINE}")
    if isinstance(error, errors.GatedRepoError):
        if not has_token():
            return UserError(
                f"{what} is gated: agree to its licence at {page(repository)}, then give a token "
                "of that account (hf auth login, or HF_TOKEN=...)"
            )
        return UserError(
            f"{what} is gated, and the account of the token has no access: agree to the licence "
            f"at {page(repository)}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"model.revision={revision}: {repository} has no such revision")
    if isinstance(error, errors.RepositoryNotFoundError):
        login = "" if has_token() else ", or it is private (hf auth login, or HF_TOKEN=...)"
        return UserError(f"model.path={repository}: the hub has no such model{login}")
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return UserError(f"{what}: the hub has no such file at {revision}")
    if status is not None:
        return UserError(f"{what}: the hub answers {status}; give the same command again later")
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"{what}: the hub cannot be reached or broke off ({said}); what has come is kept: give the "
        "same command again, or --from FOLDER with a copy of the files"
    )


def _index(
    repository: str, commit: str, files: tuple[RepositoryFile, ...]
) -> dict[str, Any] | None:
    """A pipeline's parts; None where there is none, or it is refused before the licence."""
    from huggingface_hub.file_download import http_get

    if all(file.name != INDEX for file in files):
        return None
    stream = io.BytesIO()
    try:
        http_get(_address(repository, commit, INDEX), stream, headers=_headers())
        index = json.loads(stream.getvalue())
    except Exception:
        return None
    return index if isinstance(index, dict) else None


def _address(repository: str, commit: str, name: str) -> str:
    from huggingface_hub import constants, hf_hub_url

    return hf_hub_url(repository, name, revision=commit, endpoint=constants.ENDPOINT)


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return dict(build_hf_headers())


def _file(sibling: Any) -> RepositoryFile:
    large = sibling.lfs
    sha256 = None if large is None else large["sha256"] if isinstance(large, dict) else large.sha256
    return RepositoryFile(
        name=sibling.rfilename,
        size=sibling.size,
        sha256=sha256,
        git_sha1=None if sha256 else sibling.blob_id,
    )


def _licence(card: Any) -> str | None:
    given = card.to_dict() if hasattr(card, "to_dict") else {}
    name = given.get("license_name") or given.get("license")
    return str(name) if name else None
