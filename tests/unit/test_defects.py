"""The table of the released code's defects names tests that exist; and tests of some of them."""

from __future__ import annotations

import ast
import copy
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from segquant.method import SegQuant
from tests.unit.core.helpers import bits, calibrate, correlated, one

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
COUNT = 50
# The package that an import comes from, where their names differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cleanfid": "clean-fid",
    "hydra": "hydra-core",
    "open_clip": "open_clip_torch",
    "yaml": "pyyaml",
    "triton": "torch",  # comes with it, where there is a GPU
}
OURS = ("segquant", "baselines", "evaluation", "experiments", "slurm")


def table() -> dict[str, str]:
    lines = (TESTS / "DEFECTS.md").read_text().splitlines()
    found = (re.match(r"\| (W\d+) \|[^|]*\| (.*) \|$", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}


def test_every_defect_has_its_tests_or_the_reason_why_not() -> None:
    rows = table()
    assert list(rows) == [f"W{n}" for n in range(1, COUNT + 1)]
    for number, cell in rows.items():
        named = re.findall(r"`([^`]+)::([^`]+)`", cell)
        assert named or cell.startswith("-: "), number
        for path, name in named:
            base = TESTS if path.startswith("integration") else TESTS / "unit"
            source = (base / path).read_text()
            assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{number}: {path}::{name}"


def functions() -> Iterator[tuple[Path, ast.FunctionDef, dict[str, ast.FunctionDef]]]:
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        local = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path, node, local


def asserts(node: ast.FunctionDef, local: dict[str, ast.FunctionDef], depth: int = 0) -> bool:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Assert):
            return True
        if not isinstance(inner, ast.Call):
            continue
        called = inner.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name.startswith("assert_") or name in ("raises", "fail", "opcheck"):
            return True
        if name in local and depth < 3 and asserts(local[name], local, depth + 1):
            return True
    return False


def test_every_test_asserts_something() -> None:
    """The released tests hold no assertion at all."""
    silent = [
        f"{path.name}::{node.name}" for path, node, local in functions() if not asserts(node, local)
    ]
    assert silent == []


def test_what_is_imported_is_packaged_and_declared() -> None:
    """The released wheel lacks packages that it imports, and a dependency is not declared."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = content["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.removesuffix("*") for name in included} >= set(OURS)
    project = content["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    declared = {re.split(r"[<>=!\[ ;]", line)[0].lower().replace("_", "-") for line in lines}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            for head in imported(path):
                if head in OURS or head in sys.stdlib_module_names:
                    continue
                name = DISTRIBUTIONS.get(head, head).lower().replace("_", "-")
                assert name in declared, f"{path.relative_to(ROOT)} imports {head}"


def imported(path: Path) -> set[str]:
    """Names of packages imported at the top of a file; peers imported when chosen are not meant."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("fine", [True, False])
def test_quantizing_leaves_the_request_as_it_was(fine: bool) -> None:
    """The released code fills the config that it was given, and its own default with it."""
    model, x = one(32, 16), correlated(64, 32, seed=0)
    method, how = SegQuant(seg_linear=False, dual_scale=False), bits(4, 8, fine=fine)
    calibration = calibrate(model, [x])
    before = copy.deepcopy((method, how))
    names = list(calibration.statistics)
    report = method.quantize(copy.deepcopy(model), calibration=calibration, bits=how)
    assert (method, how) == before
    assert list(calibration.statistics) == names
    assert isinstance(model.linear, nn.Linear)
    assert len(report.layers_quantized) == 1


def test_the_readme_names_verbs_that_exist() -> None:
    """The released README documents functions that do not exist."""
    from experiments.cli import VERBS

    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "".join(path.read_text() for path in pages)
    named = set(re.findall(r"`segbench ([a-z-]+)", text))
    assert named
    assert named <= set(VERBS)
    for module in re.findall(r"python -m (experiments\.[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_every_verb_is_a_file_and_every_file_a_verb() -> None:
    from experiments.cli import VERBS

    folder = ROOT / "experiments" / "verbs"
    files = {p.stem.replace("_", "-") for p in folder.glob("*.py") if "def run(" in p.read_text()}
    assert files == set(VERBS)
