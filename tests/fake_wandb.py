"""A W&B server on loopback, as far as the client needs one: runs, their history, files, artifacts.

It keeps what it is given the way the real one does where that decides anything: a run is found by
its name, lines of a file go where their offset says, and a run that is resumed is told how many
lines there are.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

HISTORY, SUMMARY, EVENTS = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl"


@dataclass
class FakeRun:
    """What the server holds of one run."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    starts: int = 0  # times that a client asked how to resume it
    complete: bool = False
    exit_code: int | None = None

    def read(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(text) for _, text in sorted(self.lines.get(file, {}).items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.read(HISTORY)

    @property
    def summary(self) -> dict[str, Any]:
        return self.read(SUMMARY)[-1] if self.lines.get(SUMMARY) else {}


@dataclass
class FakeArtifact:
    """One version of an artifact."""

    id: str
    name: str
    type: str
    digest: str
    run: str
    metadata: Any = None
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class FakeWandb:
    """The server's state; `operations` are the names of what was asked, in order."""

    runs: dict[str, FakeRun] = field(default_factory=dict)
    artifacts: dict[str, FakeArtifact] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    manifests: dict[str, str] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""
    refuses: bool = False  # answers 400 to everything
    silent: bool = False  # lets go of every connection without an answer
    lock: Any = field(default_factory=threading.RLock)

    # GraphQL ----------------------------------------------------------------------------------

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        self.operations.append(operation)
        known = getattr(self, f"on_{operation}", None)
        if known is None:
            self.unknown.append(operation)
            return {}
        said: dict[str, Any] = known(given)
        return said

    def on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        teams = {"edges": [{"node": {"name": "me"}}]}
        return {
            "viewer": {
                **{"id": "1", "entity": "me", "username": "me", "email": "me@example.org"},
                **{"flags": "{}", "teams": teams},
            }
        }

    def on_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": {**project, "bucket": None}}
        run.starts += 1
        tail = [text for _, text in sorted(run.lines.get(HISTORY, {}).items())][-1:]
        bucket = {
            **{"id": f"id-{run.name}", "name": run.name, "displayName": run.fields["displayName"]},
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": len(run.lines.get("output.log", {})),
            "historyLineCount": len(run.lines.get(HISTORY, {})),
            "eventsLineCount": len(run.lines.get(EVENTS, {})),
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.fields.get("tags") or [],
            "notes": run.fields.get("notes"),
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"model": {**project, "bucket": bucket}}

    def on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], FakeRun(given["name"]))
        run.fields |= {key: value for key, value in given.items() if value is not None}
        if given.get("config"):
            run.config = json.loads(given["config"])
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
        bucket = {
            **{"id": f"id-{run.name}", "name": run.name, "description": None, "sweepName": None},
            "displayName": run.fields.get("displayName"),
            "config": json.dumps(run.config),
            "project": project,
            "historyLineCount": len(run.lines.get(HISTORY, {})),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def on_OrganizationCoreWeaveOrganizationID(self, _: Any) -> dict[str, Any]:  # noqa: N802
        return {"entity": {"organization": None}}

    def on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/run/{given['run']}/{name}"}
            for name in given["files"]
        ]
        made = {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": made}

    def on_UpsertView2(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views[given["name"]] = given
        view = {"id": given.get("id") or f"view-{given['name']}", "name": given["name"]}
        return {"upsertView": {"view": view, "inserted": not given.get("id")}}

    def on_ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        """The client asks whether a name is taken by another type."""
        name = str(given.get("name")).partition(":")[0]
        known = [item.type for item in self.artifacts.values() if item.name == name]
        artifact = {"artifactType": {"name": known[0]}} if known else None
        return {"project": {"artifact": artifact}}

    def on_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        asked = given.get("input", given)
        name = asked.get("artifactCollectionName") or asked.get("artifactCollectionNames", [""])[0]
        known = [item for item in self.artifacts.values() if item.name == name]
        same = [item for item in known if item.digest == asked["digest"] and item.committed]
        made = FakeArtifact(
            id=f"artifact{len(self.artifacts)}",
            **{"name": name, "type": asked["artifactTypeName"], "digest": asked["digest"]},
            run=asked.get("runName") or "",
            metadata=json.loads(asked.get("metadata") or "null"),
        )
        artifact = same[0] if same else made
        self.artifacts[artifact.id] = artifact
        latest = {"id": known[-1].id, "versionIndex": len(known) - 1} if known else None
        told = {
            "id": artifact.id,
            "state": "COMMITTED" if artifact.committed else "PENDING",
            "artifactSequence": {"id": f"sequence-{name}", "latestArtifact": latest},
        }
        return {"createArtifact": {"artifact": told}}

    def on_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = f"manifest{len(self.manifests)}"
        self.manifests[key] = given["artifactID"]
        file = {
            **{"id": f"file-{key}", "name": given["name"], "displayName": given["name"]},
            **{"uploadUrl": f"{self.url}/upload/manifest/{key}/json", "uploadHeaders": []},
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": key, "file": file}}}

    def on_UpdateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = given["artifactManifestID"]
        file = {
            **{"id": f"file-{key}", "name": "wandb_manifest.json", "displayName": ""},
            **{"uploadUrl": f"{self.url}/upload/manifest/{key}/json", "uploadHeaders": []},
        }
        return {"updateArtifactManifest": {"artifactManifest": {"id": key, "file": file}}}

    def on_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        asked = given.get("input", given)
        edges = [
            {
                "node": {
                    **{"id": spec["name"], "name": spec["name"], "displayName": spec["name"]},
                    "storagePath": f"stored/{spec['name']}",
                    "uploadUrl": f"{self.url}/upload/artifact/{spec['artifactID']}/{spec['name']}",
                    **{"uploadHeaders": [], "uploadMultipartUrls": None},
                    "artifact": {"id": spec["artifactID"]},
                }
            }
            for spec in asked["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[given["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    # files ------------------------------------------------------------------------------------

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Lines go where their offset says: what was there is written over."""
        run = self.runs[name]
        for file, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(file, {})
            for number, text in enumerate(chunk["content"]):
                lines[chunk["offset"] + number] = text
        if body.get("complete"):
            run.complete, run.exit_code = True, body.get("exitcode")

    def store(self, kind: str, owner: str, name: str, content: bytes) -> None:
        if kind == "run":
            self.runs[owner].files[name] = content
        elif kind == "manifest":
            self.artifacts[self.manifests[owner]].manifest = json.loads(content)
        else:
            self.artifacts[owner].files[name] = content

    def of_type(self, kind: str) -> list[FakeArtifact]:
        return [item for item in self.artifacts.values() if item.type == kind and item.committed]

    def media(self, run: FakeRun, key: str) -> dict[str, Any]:
        """The table that a summary's key points to."""
        content: dict[str, Any] = json.loads(run.files[run.summary[key]["path"]])
        return content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeWandb

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = json.loads(self._body())
        if self.fake.silent:
            self.close_connection = True
            return None
        if self.fake.refuses:
            return self._say({"errors": [{"message": "on fire"}]}, status=400)
        with self.fake.lock:
            if self.path == "/graphql":
                name = body.get("operationName") or body["query"].split("(")[0].split()[-1]
                said = {"data": self.fake.answer(name, body.get("variables") or {})}
            else:
                self.fake.stream(self.path.split("/")[-2], body)
                said = {"exitcode": None, "limits": {}}
        return self._say(said)

    def do_PUT(self) -> None:
        if self.fake.silent:
            self.close_connection = True
            return
        _, _, kind, owner, name = unquote(self.path).split("/", 4)
        with self.fake.lock:
            self.fake.store(kind, owner, name, self._body())
        self._say({})

    def _body(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        packed = self.headers.get("Content-Encoding") == "gzip"
        return gzip.decompress(content) if packed else content

    def _say(self, content: dict[str, Any], *, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up, as W&B's does at its end, is no error of the server."""


@contextmanager
def served_wandb() -> Iterator[FakeWandb]:
    fake = FakeWandb()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = _Server(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
