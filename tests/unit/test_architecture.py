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


def test_the_library_needs_torch_alone() -> None:
    foreign = {"diffusers", "transformers", "hydra", "omegaconf", "wandb", "numpy", "PIL"}
    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "segquant":
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
