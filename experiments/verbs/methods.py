"""`segbench methods`: what there is, what each does and needs.

Asking all methods takes their classes, and with them torch. The answer is kept in the user's cache
under a name made of all that it is read from, so that it is there at once the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import site
import sys
from pathlib import Path
from typing import Any

from evaluation.records import write_text_atomically
from experiments.config.places import config_dirs
from experiments.store.digests import digest
from experiments.store.paths import CONF, ROOT
from experiments.verbs.answer import Answer

_CACHE = Path("segbench", "methods.json")
_CODE = ("baselines", "segquant", "experiments/config")  # what a description is read from
_SUFFIXES = (".py", ".yaml")
_GPU = Path("/dev/nvidia0")  # whether there is one decides what some libraries do


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None but the names."""


def run(options: argparse.Namespace) -> Answer:
    key = _key(options.overrides)
    known = _read(key)
    if known is None:
        known = _described(options.overrides)
        _keep(key, known)
    return Answer(known["text"], known["methods"])


def _described(names: list[str]) -> dict[str, Any]:
    from experiments.config.catalogue import describe_methods, render_methods

    methods = describe_methods(names)
    return {"text": render_methods(methods, whole=bool(names)), "methods": methods}


def _key(names: list[str]) -> str:
    """Changes with every file, package and setting that an answer depends on."""
    parts: list[object] = [names, sys.version, _GPU.exists(), list(map(str, config_dirs()))]
    # of where packages are installed: some, once imported, put others of their own on sys.path
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    packages = importlib.metadata.distributions(path=installed)
    parts += sorted(f"{package.name}=={package.version}" for package in packages)
    for folder in (CONF, *config_dirs(), *(ROOT / name for name in _CODE)):
        parts += sorted(map(_seen, (p for p in folder.rglob("*") if p.suffix in _SUFFIXES)))
    for folder in config_dirs():  # beside it lie classes of one's own
        parts += sorted(map(_seen, (*folder.parent.glob("*.py"), *folder.parent.glob("*/*.py"))))
    return digest(parts)


def _seen(path: Path) -> str:
    try:
        seen = path.stat()
    except OSError:
        return str(path)
    return f"{path} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / _CACHE


def _read(key: str) -> dict[str, Any] | None:
    """None where nothing is kept, or of something else; a damaged file is made again."""
    try:
        kept = json.loads(_cache().read_text(encoding="utf-8"))
        answer = kept["answer"]
        sealed = kept["digest"] == digest(answer) and kept["key"] == key
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(answer) if sealed else None


def _keep(key: str, answer: dict[str, Any]) -> None:
    """A cache that cannot be written costs a second the next time, and no word."""
    path = _cache()
    text = json.dumps({"key": key, "digest": digest(answer), "answer": answer})
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, text)
