"""Imports point one way, heavy packages stay behind their door, and no import has a side effect."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("segquant", "baselines", "evaluation", "experiments", "slurm")
ALLOWED = {
    "segquant": set(),
    "baselines": {"segquant"},
    "evaluation": set(),
    "slurm": set(),
    "experiments": {"segquant", "baselines", "evaluation", "slurm"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in _imports(path):
        head = name.split(".")[0]
        if head in PACKAGES and head != package:
            assert head in ALLOWED[package], f"{package} imports {name}"
        if package == "baselines" and head == "segquant":
            assert name.startswith(("segquant.core", "segquant.graph")), name
        if name.startswith("segquant.core") or head != "segquant":
            continue
        inside = path.relative_to(ROOT).parts[:2]
        assert inside != ("segquant", "core"), f"core imports {name}"


@pytest.mark.parametrize(
    ("module", "home"),
    [("hydra", "experiments"), ("submitit", "slurm"), ("wandb", "evaluation/report/tracking.py")],
)
def test_heavy_packages_have_one_home(module: str, home: str) -> None:
    for path in FILES:
        if any(name.split(".")[0] == module for name in _imports(path)):
            assert str(path.relative_to(ROOT)).startswith(home), path


def _files_imported(path: Path) -> Iterator[Path]:
    """Files of the project that a file imports, anywhere in it, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            for candidate in (f"{module}.{name}", module):
                base = ROOT.joinpath(*candidate.split("."))
                files = [base.with_suffix(".py"), base / "__init__.py"]
                file = next((file for file in files if file.is_file()), None)
                if file is not None and candidate.split(".")[0] in PACKAGES:
                    yield file
                    break


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_of_the_project_is_there(path: Path) -> None:
    """Imports within functions too, which no checker of types looks into here."""
    for name in _imports(path):
        if name.split(".")[0] in PACKAGES:
            base = ROOT.joinpath(*name.split("."))
            assert base.with_suffix(".py").is_file() or (base / "__init__.py").is_file(), name


def _circle(graph: dict[Path, list[Path]]) -> list[Path]:
    """Some files that import each other in a ring; empty if there are none."""
    done: set[Path] = set()

    def visit(path: Path, trail: list[Path]) -> list[Path]:
        if path in trail:
            return trail[trail.index(path) :]
        if path in done:
            return []
        for other in graph[path]:
            if other != path and (ring := visit(other, [*trail, path])):
                return ring
        done.add(path)
        return []

    return next((ring for path in graph if (ring := visit(path, []))), [])


def test_no_circles_between_files() -> None:
    graph = {path: list(_files_imported(path)) for path in FILES}
    ring = [str(path.relative_to(ROOT)) for path in _circle(graph)]
    assert not ring, " -> ".join(ring)


def test_a_circle_is_seen() -> None:
    a, b, c = Path("a"), Path("b"), Path("c")
    assert set(_circle({a: [b], b: [c], c: [b]})) == {b, c}
    assert not _circle({a: [b, c], b: [c], c: []})


def test_names_of_files_stand_once() -> None:
    homes: dict[str, list[str]] = {}
    for path in FILES:
        if not path.name.startswith("__"):
            homes.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.name == "__init__.py"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_package_only_passes_names_on(path: Path) -> None:
    """What digests of code rest on: an `__init__` does nothing that a result could depend on."""
    for node in ast.parse(path.read_text()).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_list = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert is_text or is_list or isinstance(node, ast.ImportFrom), ast.unparse(node)


def test_the_library_alone_brings_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("hydra", "wandb", "diffusers", "submitit", "transformers", "omegaconf")
    modules = "segquant, segquant.method, segquant.core, segquant.graph, segquant.kernels"
    code = f"import {modules}, sys; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_the_library_needs_torch_alone() -> None:
    foreign = {"diffusers", "transformers", "hydra", "omegaconf", "wandb", "numpy", "PIL"}
    doors = {ROOT / "segquant/diffusers.py", ROOT / "segquant/deploy/quantizer.py"}
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "segquant" and path not in doors:
            assert not {name.split(".")[0] for name in _imports(path)} & foreign, path


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_loads_no_weights_and_touches_no_file(package: str, tmp_path: Path) -> None:
    code = f"import {package}, sys; assert 'diffusers' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.iterdir())


PURE = {"isinstance", "len", "set", "all", "any", "type", "callable", "sorted", "is_dataclass"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_asserts_carry_no_work(path: Path) -> None:
    """`python -O` leaves them out: none assigns, none calls what could do something."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            inside = list(ast.walk(node.test))
            calls = {ast.unparse(part.func) for part in inside if isinstance(part, ast.Call)}
            assigns = any(isinstance(part, ast.NamedExpr) for part in inside)
            assert not assigns, ast.unparse(node)
            assert calls <= PURE, ast.unparse(node)


def test_no_package_index_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    needle = "index" + "-url"
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt") or path.name == "Makefile":
            assert needle not in path.read_text(), name


def test_committed_files_are_small() -> None:
    models = ROOT / "experiments" / "tiny" / "models"
    sizes = [path.stat().st_size for path in models.rglob("*") if path.is_file()]
    assert max(sizes, default=0) <= 16 * 2**20
    assert sum(sizes) <= 48 * 2**20


def test_rooms_of_the_harness_lie_on_floors() -> None:
    """Within experiments/ too imports point one way, folder by folder."""
    home = ROOT / "experiments"
    graph: dict[Path, list[Path]] = {}
    for path in FILES:
        if path.is_relative_to(home) and path.parent != home:
            rooms = graph.setdefault(path.parent, [])
            for other in _files_imported(path):
                if other.is_relative_to(home) and other.parent not in (home, path.parent):
                    rooms.append(other.parent)
    ring = [room.name for room in _circle(graph)]
    assert not ring, " -> ".join(ring)
