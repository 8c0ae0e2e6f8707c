"""The words after a verb that name a sweep, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.cell.cell import RECORD
from experiments.cell.progress import Progress
from experiments.cell.sweep import Sweep, open_sweep
from experiments.config.request import read_recorded, read_request
from experiments.errors import UserError
from experiments.store.folders import Store

_FOLLOW = "wait for the jobs, one line a cell"


def add_multirun(parser: argparse.ArgumentParser, text: str = "as run takes it") -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help=text)


def add_follow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help=_FOLLOW)


def add_recorded(parser: argparse.ArgumentParser, *, metavar: str = "EXPERIMENT|key=value") -> None:
    """An experiment, or a sweep's own words, whose records are read."""
    parser.add_argument("experiment", metavar=metavar)
    add_multirun(parser)


def quiet() -> Progress:
    """For verbs that run nothing."""
    return Progress(cells=0, prompts=0)


def named_sweep(words: Sequence[str]) -> Sweep:
    """Words of which the first may be an experiment's name."""
    given = list(words)
    if given and "=" not in given[0]:
        given[0] = f"+experiment={given[0]}"
    return open_sweep(read_request(given, multirun=True))


def recorded_sweep(options: argparse.Namespace) -> Sweep:
    """What `add_recorded` took."""
    request = read_recorded([options.experiment, *options.overrides])
    return open_sweep(request, progress=quiet())


def store_root(options: argparse.Namespace) -> Path:
    """The folder of a verb that takes `out=FOLDER` and nothing else."""
    given = dict(item.partition("=")[::2] for item in options.overrides)
    if set(given) - {"out"}:
        raise UserError(
            f"{options.verb} takes out=FOLDER and nothing else; the default is out=runs"
        )
    root = Path(given.get("out", "runs"))
    if not root.is_dir():
        raise UserError(f"out={root}: no such folder")
    return root


def check_writable(folder: Path | None) -> None:
    """Makes the folder that an answer will be written to, before the answer is worked for.

    Raises:
        UserError: it cannot be made or written.
    """
    if folder is not None:
        Store(folder).prepare()


def no_record(sweep: Sweep) -> UserError:
    """For a verb that reads records and finds none."""
    others = sum(1 for _ in (sweep.store.root / "cells").glob(f"*/{RECORD}"))
    known = f" ({others} records are of other settings, code or threads)" if others else ""
    return UserError(
        f"{sweep.store.root} holds no finished cell of {sweep.name}{known}; run the same words "
        "with segbench run first, or give out=FOLDER"
    )
