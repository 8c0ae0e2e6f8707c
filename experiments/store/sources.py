"""What code a result depends on: modules and all that they import, read from their source.

No list of files is kept by hand. Of a module everything counts that it imports, at any depth and in
any function; not what only type checkers import. Names that a package's `__init__` passes on
(`from segquant.core import Bits`) lead to the file that defines them: an `__init__` that only
passes names on counts for nothing, which is sound as long as no import has a side effect. Data
files beside the modules of a package (the kernels' table) count with every module of that folder.

What only presents is in no key: of a module, the lines of a module-level assignment to `SHOWN`
(titles and legends) are left out.

Of code from outside the project, what lies in the named module's own package or folder counts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    packages_distributions,
    version,
)
from pathlib import Path

from experiments.store.digests import HASH_LENGTH
from experiments.store.paths import ROOT

PACKAGES = ("segquant", "baselines", "evaluation", "experiments", "slurm")
PRESENTED = "SHOWN"
_INIT = "__init__"
_DATA = (".json", ".yaml", ".npz")  # what a package reads; notes and logs beside it are not
_CALLED = {  # otherwise than what is imported; to ask for all takes a second
    "PIL": "pillow",
    "cleanfid": "clean-fid",
    "modelopt": "nvidia-modelopt",
    "open_clip": "open_clip_torch",
    "optimum": "optimum-quanto",
}
_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))


@dataclass(frozen=True)
class _Home:
    """A folder below which imported modules are looked for."""

    folder: Path
    only: frozenset[str]  # top-level names that are followed; empty: whatever lies there


def code_digest(*modules: str) -> str:
    """The hash of the source of some modules and of all that they import.

    Args:
        modules: dotted names, such as `baselines.gptq`; of the project, or importable.
    """
    return _digest(tuple(sorted(set(modules))))


@functools.cache
def _digest(modules: tuple[str, ...]) -> str:
    state = hashlib.sha256()
    for name, path in _closure(modules):
        state.update(f"{name}\0{_file_digest(path)}\0".encode())
    return state.hexdigest()[:HASH_LENGTH]


def code_files(*modules: str) -> tuple[str, ...]:
    """The files that `code_digest` of these modules reads, relative to the project's root."""
    return tuple(name for name, _ in _closure(tuple(sorted(set(modules)))))


def package_versions(*modules: str) -> dict[str, str]:
    """Distribution -> version of what is installed of what some modules, and all they import, use.

    Neither the standard library nor what counts as code already.
    """
    return dict(_versions(tuple(sorted(set(modules)))))


@functools.cache
def _versions(modules: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    homes = (_Home(ROOT, frozenset(PACKAGES)), *dict.fromkeys(_outside(modules)))
    sources = [path for _, path in _closure(modules) if path.suffix == ".py"]
    names = {name for path in sources for name, _ in _parsed(path).imports}
    tops = {name.partition(".")[0] for name in names if not name.startswith(".")}
    foreign = [
        top for top in tops - sys.stdlib_module_names - {*PACKAGES} if _find(top, homes) is None
    ]
    found = {(name, version(name)) for top in foreign for name in _distributions(top)}
    return tuple(sorted(found))


@functools.cache
def _distributions(top: str) -> tuple[str, ...]:
    """The distributions that an import is from; none if it is not installed."""
    if importlib.util.find_spec(top) is None:
        return ()
    try:
        return (distribution(_CALLED.get(top, top)).name,)
    except PackageNotFoundError:
        return tuple(dict.fromkeys(packages_distributions().get(top, ())))


@functools.cache
def project_digest() -> str:
    """The hash of all source of the project."""
    state = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            state.update(f"{path.relative_to(ROOT)}\0{_file_digest(path)}\0".encode())
    return state.hexdigest()[:HASH_LENGTH]


def forget() -> None:
    """Reads every file again when it is next asked for."""
    for cached in _CACHED:
        cached.cache_clear()


@functools.cache
def _closure(modules: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Name and path of every file, sorted by name."""
    homes = (_Home(ROOT, frozenset(PACKAGES)), *dict.fromkeys(_outside(modules)))
    seen: dict[Path, str] = {}
    waiting = [path for module in modules for path in _resolve(module, None, homes)]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = _name(path, homes)
        if path.suffix != ".py":
            continue
        waiting += _beside(path.parent)
        for module, name in _parsed(path).imports:
            waiting += _resolve(_absolute(module, path, homes), name, homes)
    return tuple(sorted((name, path) for path, name in seen.items()))


def _outside(modules: tuple[str, ...]) -> Iterator[_Home]:
    """Where modules that are not of the project lie."""
    for module in modules:
        top = module.partition(".")[0]
        if top in PACKAGES:
            continue
        spec = importlib.util.find_spec(top)
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or [])
        origin = Path(places[0]) if places else Path(spec.origin or "")
        folder = origin.parent
        installed = any(folder.is_relative_to(place) for place in _INSTALLED)
        if origin.is_absolute():
            yield _Home(folder, frozenset({top}) if installed else frozenset())


def _name(path: Path, homes: tuple[_Home, ...]) -> str:
    """From the innermost home: a package of one's own may lie within the checkout."""
    around = [home.folder for home in homes if path.is_relative_to(home.folder)]
    return str(path.relative_to(max(around, key=lambda folder: len(folder.parts))))


def _absolute(module: str, path: Path, homes: tuple[_Home, ...]) -> str:
    """The dotted name that a relative import (`..module`) in a file stands for."""
    level = len(module) - len(module.lstrip("."))
    if not level:
        return module
    package = Path(_name(path, homes)).parents[level - 1]
    return ".".join([*package.parts, *filter(None, [module[level:]])])


def _resolve(
    module: str,
    name: str | None,
    homes: tuple[_Home, ...],
    on_the_way: frozenset[tuple[str, str | None]] = frozenset(),
) -> Iterator[Path]:
    """The files that `import module`, or `from module import name`, stands for."""
    path = _find(module, homes)
    if path is None:
        return
    if name is None or path.stem != _INIT:
        yield path
        return
    if _find(f"{module}.{name}", homes) is not None:
        yield from _resolve(f"{module}.{name}", None, homes)
        return
    passed_on = _parsed(path).passed_on.get(name)
    seen = on_the_way | {(module, name)}
    if passed_on is None or passed_on in seen:  # defined in the `__init__` itself, or `*`
        yield path
    else:
        module, name = passed_on
        yield from _resolve(_absolute(module, path, homes), name, homes, seen)


def _find(module: str, homes: tuple[_Home, ...]) -> Path | None:
    """The module's file: `a/b.py` or `a/b/__init__.py`."""
    parts = module.split(".")
    for home in homes:
        if home.only and parts[0] not in home.only:
            continue
        base = home.folder.joinpath(*parts)
        for path in (base / f"{_INIT}.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@functools.cache
def _beside(folder: Path) -> tuple[Path, ...]:
    """Data files of a folder, where it is a package's."""
    if not (folder / f"{_INIT}.py").is_file():
        return ()
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in _DATA and not path.name.startswith(".")
    )


@dataclass(frozen=True)
class _Parsed:
    """What a file imports, what of it another may import through it, and the bytes that count."""

    imports: tuple[tuple[str, str | None], ...]
    passed_on: dict[str, tuple[str, str | None]]
    counted: bytes


@functools.cache
def _file_digest(path: Path) -> str:
    content = _parsed(path).counted if path.suffix == ".py" else path.read_bytes()
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _parsed(path: Path) -> _Parsed:
    content = path.read_bytes()
    tree = ast.parse(content)
    passed_on: dict[str, tuple[str, str | None]] = {}
    lines = content.splitlines(keepends=True)
    for node in tree.body:
        for target, source in _imported(node):
            passed_on[target] = source
        if _presents(node):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [b""] * (node.end_lineno - node.lineno + 1)
    imports = tuple(dict.fromkeys(source for node in _walk(tree) for _, source in _imported(node)))
    return _Parsed(imports, passed_on, b"".join(lines))


def _presents(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return any(isinstance(target, ast.Name) and target.id == PRESENTED for target in targets)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers read, and those that only present."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _for_type_checkers(child.test):
            for other in child.orelse:
                yield other
                yield from _walk(other)
        elif not (isinstance(node, ast.Module) and _presents(child)):
            yield child
            yield from _walk(child)


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imported(node: ast.AST) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """The name that an import binds, and the module (with a name in it) that it stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name, (alias.name, None)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, ("." * node.level + (node.module or ""), alias.name)


_CACHED = (
    project_digest,
    _digest,
    _versions,
    _distributions,
    _closure,
    _file_digest,
    _parsed,
    _beside,
)
