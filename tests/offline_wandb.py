"""An offline W&B run, read back."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def read_back(run_dir: Path, *, pattern: str = "offline-run-*") -> list[Any]:
    """Every record of an offline run, once it is whole.

    `finish()` returns before W&B's background process has written the file to its end; the last
    record is the exit.
    """
    for _ in range(600):
        messages = read_messages(run_dir, pattern)
        if any(message.WhichOneof("record_type") == "exit" for message in messages):
            return messages
        time.sleep(0.1)
    raise AssertionError(f"{run_dir}: the run has no end")


def read_messages(run_dir: Path, pattern: str) -> list[Any]:
    """LevelDB log framing around protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    (path,) = run_dir.glob(f"wandb/{pattern}/run-*.wandb")
    data = path.read_bytes()
    offset, block, parts, messages = 7, 32768, b"", []
    while offset + 7 <= len(data):
        left = block - offset % block
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        if offset + 7 + length > len(data):
            break  # still being written
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            message = Message()
            message.ParseFromString(parts)
            messages.append(message)
            parts = b""
    return messages


def inspect_run(run_dir: Path) -> dict[str, Any]:
    """What W&B's own reader says of the run: state, summary, config."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", f"{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _of_kind(messages: list[Any], kind: str) -> list[Any]:
    return [getattr(one, kind) for one in messages if one.WhichOneof("record_type") == kind]


def summary_of(messages: list[Any]) -> dict[str, Any]:
    """As it stands at the end."""
    found: dict[str, Any] = {}
    for summary in _of_kind(messages, "summary"):
        found |= _values(summary.update)
    return found


def history_of(messages: list[Any]) -> list[dict[str, Any]]:
    return [_values(row.item) for row in _of_kind(messages, "history")]


def config_of(messages: list[Any]) -> dict[str, Any]:
    """As it stands at the end."""
    found: dict[str, Any] = {}
    updates = [run.config.update for run in _of_kind(messages, "run")]
    for update in [*updates, *(config.update for config in _of_kind(messages, "config"))]:
        found |= _values(update)
    return found
