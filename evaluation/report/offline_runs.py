"""Offline W&B runs, pushed by W&B's own command."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# with them the command says nothing of a run that it cannot push
_QUIETENING = ("WANDB_SERVICE", "WANDB_SILENT", "WANDB_QUIET")
_ERROR_LINES = 4  # of W&B's output that an error may take
_SYNC_SECONDS = 600
_PUSHED = "*.wandb.synced"  # the mark that W&B's command leaves beside a run


@dataclass(frozen=True)
class Pushed:
    """An offline run that was pushed, or the reason why it was not."""

    folder: Path
    error: str


def sync_runs(root: Path) -> list[Pushed]:
    """Push every offline run below `root` that was not pushed yet, oldest first.

    The command of W&B itself does it, one run a call, so that a bad one stops no other. It leaves
    `<run>.wandb.synced` behind: a second call pushes only what is new.
    """
    runs = sorted(root.rglob("offline-run-*"), key=lambda folder: folder.name)
    waiting = [run for run in runs if run.is_dir() and not any(run.glob(_PUSHED))]
    return [Pushed(folder, _push(folder)) for folder in waiting]


def _push(folder: Path) -> str:
    """An empty string, or why the run was not pushed.

    W&B's command answers 0 whatever became of the run; what counts is the mark that it leaves.
    """
    if not any(folder.glob("*.wandb")):
        return "holds no .wandb file"
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SYNC_SECONDS,
            check=False,
            env={name: value for name, value in os.environ.items() if name not in _QUIETENING},
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_SYNC_SECONDS} s"
    lines = [line for text in (done.stderr, done.stdout) for line in text.strip().splitlines()]
    said = [line.removeprefix("wandb:").strip() for line in lines]
    error = next((number for number, line in enumerate(said) if "ERROR" in line), None)
    if error is not None:  # W&B breaks its lines where it likes
        return " ".join(said[error : error + _ERROR_LINES])
    if done.returncode == 0 and any(folder.glob(_PUSHED)):
        return ""
    return said[-1] if said else f"exit status {done.returncode}"
