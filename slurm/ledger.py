"""Which job makes what: one file of lines beside the results, for every sweep and every user.

An intent is written before a submission and the job's id after it, so that a launcher killed in
between leaves no job that nobody knows: the next one finds it in the queue by its name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A job that was submitted to make an item."""

    item: str
    job: str
    stage: str
    folder: str  # where its logs lie


class Ledger:
    """The file; whoever writes holds the sweep's submission lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def intend(self, token: str, items: Sequence[Sequence[str]], *, stage: str) -> None:
        """An array called `token` is about to be submitted; its k-th job makes `items[k]`."""
        self._append({"token": token, "stage": stage, "items": [list(names) for names in items]})

    def confirm(self, token: str, job: str, *, folder: Path) -> None:
        """The array `token` is the job `job`."""
        self._append({"token": token, "job": job, "folder": str(folder)})

    def withdraw(self, token: str) -> None:
        """The array `token` was refused."""
        self._append({"token": token, "job": None, "folder": ""})

    def settle(self, find: Callable[[str], str | None], *, folder: Path) -> None:
        """Answers the intents that a killed launcher left open."""
        open_tokens: dict[str, None] = {}
        for line in self._lines():
            if "items" in line:
                open_tokens[line["token"]] = None
            else:
                open_tokens.pop(line["token"], None)
        for token in open_tokens:
            job = find(token)
            if job is None:
                self.withdraw(token)
            else:
                self.confirm(token, job, folder=folder / token)

    def _append(self, content: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            os.replace(self.path, self.path.with_name(f"{self.path.name}.damaged-{os.getpid()}"))
        with self.path.open("ab") as stream:
            if stream.tell() and not self._ends_with_newline():
                stream.write(b"\n")  # a line that a full disk cut short
            stream.write(json.dumps(content).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"

    def entries(self, find: Callable[[str], str | None]) -> dict[str, Entry]:
        """The latest job of every item.

        Args:
            find: the job of that name in the queue; asked for intents without an answer.
        """
        intents: dict[str, dict[str, Any]] = {}
        latest: dict[str, Entry] = {}
        for line in self._lines():
            if "items" in line:
                intents[line["token"]] = line
                continue
            intent = intents.pop(line["token"], None)
            if intent is not None and line["job"] is not None:
                latest |= _entries(intent, job=line["job"], folder=line["folder"])
        for token, intent in intents.items():
            job = find(token)
            if job is not None:
                latest |= _entries(intent, job=job, folder=str(self.path.parent / token))
        return latest

    def _lines(self) -> Iterable[dict[str, Any]]:
        """Whole lines; of one that was cut short or damaged, what it said is found in the queue."""
        if not self.path.is_file():
            return
        for text in self.path.read_bytes().splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if _is_intent(line) or _is_answer(line):
                yield line


def _is_intent(line: Any) -> bool:
    if not isinstance(line, dict) or line.keys() != {"token", "stage", "items"}:
        return False
    items = line["items"]
    if not isinstance(items, list) or not all(isinstance(names, list) for names in items):
        return False
    names = [name for names in items for name in names]
    return all(isinstance(text, str) for text in (line["token"], line["stage"], *names))


def _is_answer(line: Any) -> bool:
    if not isinstance(line, dict) or line.keys() != {"token", "job", "folder"}:
        return False
    texts = (line["token"], line["folder"], "" if line["job"] is None else line["job"])
    return all(isinstance(text, str) for text in texts)


def _entries(intent: dict[str, Any], *, job: str, folder: str) -> dict[str, Entry]:
    several = len(intent["items"]) > 1
    return {
        item: Entry(item, f"{job}_{index}" if several else job, intent["stage"], folder)
        for index, names in enumerate(intent["items"])
        for item in names
    }
