"""`segbench fetch`: the files of a sweep's models, brought into the hub's cache beforehand."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.cell.sweep import open_sweep
from experiments.config.request import read_request
from experiments.readiness.fetching import plan_fetch
from experiments.readiness.other_files import outside_files_of
from experiments.readiness.repositories import no_folder, sources_of
from experiments.verbs.answer import Answer
from experiments.verbs.words import add_multirun, quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_multirun(parser)
    parser.add_argument("--list", action="store_true", help="say what would be fetched")
    parser.add_argument(
        "--from",
        dest="mirror",
        type=Path,
        metavar="FOLDER",
        help="copy from a hub cache or a folder of the model's files, without internet",
    )


def run(options: argparse.Namespace) -> Answer:
    request = read_request(options.overrides, multirun=options.multirun)
    sweep = open_sweep(request, progress=quiet())
    lines: list[str] = []
    models: list[dict[str, Any]] = []
    for source in sources_of(cell.config.model for cell in sweep.cells):
        folder = source.folder()
        row: dict[str, Any] = {"model": source.what, "path": source.path}
        if not source.on_hub:
            if folder is None:
                raise no_folder(source)
            models.append({**row, "folder": str(folder)})
            lines.append(f"{source.path}: here, nothing to fetch")
            continue
        note = sweep.progress.note
        fetch = plan_fetch(source, mirror=options.mirror, read=not options.list, note=note)
        if options.list:
            lines += fetch.describe()
        else:
            fetch.run(note)
            lines += [fetch.done(), fetch.pin()]
        models.append({**row, **fetch.to_dict()})
    files = outside_files_of(sweep)
    lines += [file.describe() for file in files]
    return Answer("\n".join(lines), {"models": models, "files": [f.to_dict() for f in files]})
