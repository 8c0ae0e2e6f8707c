"""The code that a result depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments.store import sources
from experiments.store.sources import code_digest, code_files, forget, package_versions

Write = Callable[[str, str], None]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Write]:
    """Writes a file of a project of its own, which the digests then read."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def file(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(tmp_path).parents[:-1]:
            if name.endswith(".py"):
                (tmp_path / folder / "__init__.py").touch()
        forget()

    yield file
    forget()


def test_a_method_depends_on_what_it_imports_and_on_no_other_method() -> None:
    rtn = code_files("baselines.rtn")
    assert "baselines/rtn.py" in rtn
    assert "segquant/core/layer_pass.py" in rtn
    assert not any("kernels" in path or "gptq" in path for path in rtn)
    ptqd = code_files("baselines.ptqd")
    for path in ("corrected", "gptq", "adaround", "reconstruction", "soft"):
        assert f"baselines/{path}.py" in ptqd
    assert "baselines/svdquant.py" not in ptqd


def test_an_import_within_a_function_and_a_submodule_by_name_count() -> None:
    assert "segquant/kernels/triton_launch.py" in code_files("segquant.kernels.operators")
    assert "segquant/kernels/operators.py" in code_files("segquant.kernels.door")


def test_the_kernels_table_counts_with_the_kernels() -> None:
    assert "segquant/kernels/table.json" in code_files("segquant.kernels.choice")


def test_every_byte_of_what_is_imported_counts_and_of_nothing_else(write: Write) -> None:
    write("baselines/a.py", "from baselines import b\n")
    write("baselines/b.py", "x = 1\n")
    write("baselines/c.py", "y = 1\n")
    before = code_digest("baselines.a")
    write("baselines/c.py", "y = 2\n")
    assert code_digest("baselines.a") == before
    write("baselines/b.py", "x = 1  # a word\n")
    assert code_digest("baselines.a") != before


def test_what_only_type_checkers_import_does_not_count(write: Write) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from baselines import b\n"
    write("baselines/a.py", text)
    write("baselines/b.py", "x = 1\n")
    write("baselines/c.py", "y = 1\n")
    assert code_files("baselines.a") == ("baselines/a.py",)
    write("baselines/a.py", text + "else:\n    from baselines import c\n")
    assert "baselines/c.py" in code_files("baselines.a")


def test_a_name_that_a_package_passes_on_leads_to_its_file(write: Write) -> None:
    write("segquant/core/b.py", "class B: ...\n")
    write("segquant/core/c.py", "class C: ...\n")
    passes = "from segquant.core.b import B\nfrom segquant.core.c import C\n"
    write("segquant/core/__init__.py", passes)
    write("baselines/a.py", "from segquant.core import B\n")
    assert code_files("baselines.a") == ("baselines/a.py", "segquant/core/b.py")
    write("segquant/core/__init__.py", f"{passes}def own() -> None: ...\n")
    write("baselines/a.py", "from segquant.core import own\n")
    assert "segquant/core/__init__.py" in code_files("baselines.a")
    write("baselines/a.py", "import segquant.core\n")
    assert "segquant/core/c.py" in code_files("baselines.a")


def test_what_only_presents_does_not_count(write: Write) -> None:
    def text(title: str, value: int) -> str:
        return f"value = {value}\nSHOWN = (\n    {title!r},\n)\nother = 3\n"

    write("evaluation/a.py", text("PSNR", 1))
    before = code_digest("evaluation.a")
    write("evaluation/a.py", text("Peak signal to noise", 1))
    assert code_digest("evaluation.a") == before
    write("evaluation/a.py", text("PSNR", 2))
    assert code_digest("evaluation.a") != before


def test_of_a_method_from_elsewhere_its_own_files_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    (folder / "somebodys_steps.py").write_text("steps = 1\n")
    digests = []
    for text in ("from segquant.core import Bits\nimport somebodys_steps\n", "x = 2\n"):
        (folder / "somebodys.py").write_text(text)
        forget()
        digests.append(code_digest("somebodys"))
        if not digests[1:]:
            names = code_files("somebodys")
            assert {"somebodys.py", "somebodys_steps.py", "segquant/core/schemes.py"} <= set(names)
    assert digests[0] != digests[1]


def test_of_a_package_from_elsewhere_relative_imports_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "their_methods" / "inner"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_methods" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (tmp_path / "their_methods" / "common.py").write_text("x = 1\n")
    (package / "mine.py").write_text("from ..common import x\nfrom . import beside\n")
    (package / "beside.py").write_text("y = 1\n")
    forget()
    assert code_files("their_methods.inner.mine") == (
        "their_methods/common.py",
        "their_methods/inner/beside.py",
        "their_methods/inner/mine.py",
    )


def test_a_package_of_ones_own_within_the_checkout_and_stray_files(
    monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path
) -> None:
    """Relative imports lead to its files; notes and logs beside them count for nothing."""
    write("mine_in/pkg_of_mine/helper.py", "A = 1\n")
    write("mine_in/pkg_of_mine/method2.py", "from .helper import A\n")
    monkeypatch.syspath_prepend(tmp_path / "mine_in")
    (tmp_path / "mine_in" / "__init__.py").unlink()
    forget()
    files = code_files("pkg_of_mine.method2")
    assert files == ("pkg_of_mine/helper.py", "pkg_of_mine/method2.py")
    before = code_digest("pkg_of_mine.method2")
    (tmp_path / "mine_in" / "pkg_of_mine" / "run.log").write_text("a line")
    forget()
    assert code_digest("pkg_of_mine.method2") == before


def _installed(folder: Path, name: str, version: str, *, top: str) -> None:
    """As an installer leaves a package."""
    (folder / top).mkdir(exist_ok=True)
    (folder / top / "__init__.py").touch()
    info = folder / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{top}\n")
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("imported", "name", "top"),
    [
        ("import quantlib.deep", "quantlib", "quantlib"),
        ("def f():\n    from quantlib import x", "quant-lib", "quantlib"),
    ],
)
def test_the_versions_of_what_a_method_uses_from_outside_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imported: str, name: str, top: str
) -> None:
    """An upgraded quantization library makes its rows again, and no others."""
    for folder in ("site", "mine"):
        (tmp_path / folder).mkdir()
        monkeypatch.syspath_prepend(tmp_path / folder)
    method = tmp_path / "mine" / "method_of_mine.py"
    method.write_text(f"import json\nimport nowhere\nfrom segquant.core import Bits\n{imported}\n")
    _installed(tmp_path / "site", name, "1.0", top=top)
    forget()
    before = package_versions("method_of_mine")
    assert before[name] == "1.0"
    assert {"torch"} <= set(before)
    assert not {"json", "nowhere", "segquant", "method_of_mine"} & set(before)
    others = package_versions("baselines.rtn")
    _installed(tmp_path / "site", name, "1.1", top=top)
    forget()
    assert package_versions("method_of_mine") == {**before, name: "1.1"}
    assert package_versions("baselines.rtn") == others
