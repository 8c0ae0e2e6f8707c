"""What code a result depends on: named files, or a file of the project and all that it imports.

The second so that an edit of one method makes that method's rows again, and no other's.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from experiments.store.folders import HASH_LENGTH
from experiments.store.paths import ROOT

PACKAGES = ("segquant", "baselines", "evaluation", "experiments", "slurm")


@functools.cache
def source_digest(*packages: str) -> str:
    """The hash of all Python source under folders (or files) of the project."""
    state = hashlib.sha256()
    for package in packages:
        base = ROOT / package
        for path in sorted(base.rglob("*.py")) if base.is_dir() else [base]:
            state.update(_named(str(path.relative_to(ROOT)), path))
    return state.hexdigest()[:HASH_LENGTH]


@functools.cache
def import_closure(module: str) -> tuple[str, ...]:
    """Paths of a module and of what it imports, at any depth and in any function; sorted.

    Args:
        module: dotted name, such as `baselines.gptq`; one outside of the project has no paths here.
    """
    seen: set[Path] = set()
    open_ = list(_files(module))
    while open_:
        path = open_.pop()
        if path not in seen:
            seen.add(path)
            open_ += [file for name in _imports(path) for file in _files(name)]
    return tuple(sorted(str(path.relative_to(ROOT)) for path in seen))


@functools.cache
def closure_digest(*modules: str) -> str:
    """The hash of the source of several modules' closures.

    Of a module outside of the project (a method of one's own) its own file counts.
    """
    state = hashlib.sha256()
    for module in sorted(modules):
        spec = None if module.split(".")[0] in PACKAGES else importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            state.update(_named(module, Path(spec.origin)))
    for name in sorted({path for module in modules for path in import_closure(module)}):
        state.update(_named(name, ROOT / name))
    return state.hexdigest()[:HASH_LENGTH]


def _named(name: str, path: Path) -> bytes:
    return name.encode() + b"\0" + path.read_bytes() + b"\0"


def _files(module: str) -> Iterator[Path]:
    """The module's file and the `__init__` of each package around it; nothing for a name in one."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                yield path


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # A name may be a module of its own: `from segquant.kernels import operators`.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
