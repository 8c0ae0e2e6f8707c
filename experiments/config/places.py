"""Where the yaml files of a config lie: `conf/`, and folders of one's own.

The environment holds the own folders, so that processes and jobs started from here see them too.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.errors import UserError
from experiments.store.paths import CONF, ROOT

GROUPS = ("model", "method", "bits", "dataset", "metrics", "cluster", "logger")
_FOLDERS = (*GROUPS, "experiment")
CONFIG_DIRS = "SEGBENCH_CONFIG_DIRS"  # environment variable: own folders, as PATH lists them
_PACKAGES = ("segquant", "baselines", "evaluation", "experiments", "slurm")
_added: list[str] = []  # what `use_config_dirs` put on the module path of this process


def use_config_dirs(paths: Sequence[Path]) -> None:
    """Makes the yaml files of these folders options, and modules beside the folders importable.

    `my/conf/method/mine.yaml` is then `method=mine`, and its `_target_: method.Mine` the class in
    `my/method.py`; here, in child processes and in jobs. Replaces what an earlier call named.

    Raises:
        UserError: a folder that is not there or holds no group; a file of a name that is taken.
    """
    folders = [_checked(path) for path in dict.fromkeys(path.expanduser() for path in paths)]
    _check_names([CONF, *folders])
    while _added:
        parent = _added.pop()
        sys.path.remove(parent)
        _set("PYTHONPATH", [entry for entry in _listed("PYTHONPATH") if entry != parent])
    for parent in dict.fromkeys(str(folder.parent) for folder in folders):
        if parent not in sys.path:
            _added.append(parent)
            sys.path.append(parent)
            _set("PYTHONPATH", [*_listed("PYTHONPATH"), parent])
    _set(CONFIG_DIRS, [str(folder) for folder in folders])
    importlib.invalidate_caches()


def config_dirs() -> tuple[Path, ...]:
    """The folders of one's own, beside `conf/`."""
    return tuple(Path(entry) for entry in _listed(CONFIG_DIRS))


def options(group: str) -> list[str]:
    """The names that `group=` takes, sorted."""
    folders = (CONF, *config_dirs())
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def find_yaml(group: str, option: str) -> Path | None:
    """The file of an option, or None."""
    for folder in (CONF, *config_dirs()):
        path = folder / group / f"{option}.yaml"
        if path.is_file():
            return path
    return None


def read_yaml(group: str, option: str) -> dict[str, Any]:
    """What the file of an option says, not to be changed; nothing where there is none.

    Raises:
        UserError: it is no YAML of keys and values.
    """
    path = find_yaml(group, option)
    return {} if path is None else _content(path, path.stat().st_mtime_ns)


def stands_alone(group: str, option: str) -> bool:
    """Whether the file of an option is all of its config: it reads no other file or group."""
    path = find_yaml(group, option)
    if path is None:
        return False
    return _stands_alone(path, path.stat().st_mtime_ns)


def shown(path: Path) -> str:
    """A path as messages name it: from the project's root if it lies there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@functools.cache
def _stands_alone(path: Path, changed_ns: int) -> bool:
    text = path.read_text()
    reads_more = "${" in text or "@package" in text
    return not reads_more and "defaults" not in _content(path, changed_ns)


@functools.cache
def _content(path: Path, changed_ns: int) -> dict[str, Any]:
    """`changed_ns` tells an edited file from the one that was read."""
    try:
        node = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise UserError(f"{shown(path)} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(node, DictConfig):
        raise UserError(f"{shown(path)} is no list of keys and values")
    content = OmegaConf.to_container(node)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _checked(path: Path) -> Path:
    folder = path.resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir {path}: no such folder; give one with method/mine.yaml")
    if (folder / "config.yaml").exists():
        raise UserError(
            f"--config-dir {path}: its config.yaml would be ignored; put values into an "
            "experiment's yaml"
        )
    if not any((folder / group).is_dir() for group in _FOLDERS):
        near = [
            f"{name} -> {match[0]}"
            for name in sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
            if (match := difflib.get_close_matches(name, _FOLDERS, n=1))
        ]
        hint = f" (rename {', '.join(near)}?)" if near else ""
        raise UserError(
            f"--config-dir {path}: it holds none of the folders {', '.join(_FOLDERS)}{hint}"
        )
    hides = [name for name in _PACKAGES if (folder.parent / name).exists()]
    if hides and folder.parent != ROOT:
        raise UserError(
            f"--config-dir {path}: {folder.parent / hides[0]} has the name of a package of the "
            "project, and modules beside the folder are imported; move the folder or rename that"
        )
    return folder


def _check_names(folders: Sequence[Path]) -> None:
    """One name, one file: a row's name must say which file it is from."""
    taken: dict[tuple[str, str], Path] = {}
    for folder in dict.fromkeys(folders):
        for group in _FOLDERS:
            for path in sorted((folder / group).glob("*.yaml")):
                other = taken.setdefault((group, path.stem), path)
                if other != path:
                    raise UserError(
                        f"{group}={path.stem} is both {shown(other)} and {shown(path)}; "
                        "rename one: a row's name must say which it is"
                    )


def _listed(variable: str) -> list[str]:
    return [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry]


def _set(variable: str, entries: Sequence[str]) -> None:
    if entries:
        os.environ[variable] = os.pathsep.join(entries)
    else:
        os.environ.pop(variable, None)
