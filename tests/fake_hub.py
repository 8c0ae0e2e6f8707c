"""The hub's API over a folder, on this machine: listings, files by Range, refusals, bad lines."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"
_LARGE = (".safetensors", ".bin")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass(kw_only=True)
class FakeHub:
    """A repository, what goes wrong with it, and what was asked of it."""

    folder: Path
    repository: str = "some/model"
    commit: str = COMMIT
    gated: bool = False
    agreed: bool = False  # whether the token's account has agreed to the licence
    breaks_after: dict[str, int] = field(default_factory=dict)  # file -> bytes, then 500
    hangs_after: dict[str, int] = field(default_factory=dict)  # file -> bytes, then silence
    damaged: set[str] = field(default_factory=set)  # files that come with another byte
    asked: list[tuple[str, int]] = field(default_factory=list)  # file, from which byte on
    listings: int = 0
    hung: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def names(self) -> list[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in paths)

    def listing(self) -> dict[str, Any]:
        return {
            "id": self.repository,
            "sha": self.commit,
            "gated": "auto" if self.gated else False,
            "tags": [],
            "siblings": [self._sibling(name) for name in self.names()],
        }

    def _sibling(self, name: str) -> dict[str, Any]:
        content = (self.folder / name).read_bytes()
        row = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        if name.endswith(_LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
        return row


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """The address at which a hub answers."""
    kind = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(address: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """The hub's client of this process, which read its environment when it was imported."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # it keeps whole ones
    patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(cache / "no_token"))
    patch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/models/{self.hub.repository}/revision/"):
            self._list(path.rpartition("/")[2])
        elif path.startswith(f"/{self.hub.repository}/resolve/"):
            self._send_file(path.split("/resolve/", 1)[1].partition("/")[2])
        else:
            self._refuse(404, "RepoNotFound")

    def _list(self, revision: str) -> None:
        self.hub.listings += 1
        if revision not in ("main", self.hub.commit):
            self._refuse(404, "RevisionNotFound")
            return
        self._send(200, json.dumps(self.hub.listing()).encode())

    def _send_file(self, name: str) -> None:
        hub = self.hub
        token = self.headers.get("Authorization")
        if hub.gated and not (hub.agreed and token == f"Bearer {TOKEN}"):
            self._refuse(401 if token is None else 403, "GatedRepo")
            return
        content = (hub.folder / name).read_bytes()
        if name in hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        given = _RANGE.fullmatch(self.headers.get("Range", ""))
        begin = int(given[1]) if given else 0
        hub.asked.append((name, begin))
        for limits, hang in ((hub.breaks_after, False), (hub.hangs_after, True)):
            if name in limits:
                self._send_part(content, begin, end=limits[name], hang=hang)
                return
        about = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        self._send(206 if given else 200, content[begin:], **(about if given else {}))

    def _send_part(self, content: bytes, begin: int, *, end: int, hang: bool) -> None:
        """So many bytes and then nothing; who asks again for the rest is refused."""
        if begin >= end:
            self._refuse(500, "")
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])
        self.wfile.flush()
        if hang:
            self.hub.hung.set()
            self.hub.over.wait(60)
        self.close_connection = True

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""
