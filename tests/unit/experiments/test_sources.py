"""The code that a result depends on."""

from __future__ import annotations

import pytest

from experiments.store import sources
from experiments.store.sources import closure_digest, import_closure, source_digest


def test_a_method_depends_on_what_it_imports_and_on_no_other_method() -> None:
    rtn = import_closure("baselines.rtn")
    assert "baselines/rtn.py" in rtn
    assert "segquant/core/quantize.py" in rtn
    assert not any("kernels" in path or "gptq" in path for path in rtn)
    ptqd = import_closure("baselines.ptqd")
    for path in ("corrected", "gptq", "adaround", "reconstruction", "soft"):
        assert f"baselines/{path}.py" in ptqd
    assert "baselines/svdquant.py" not in ptqd


def test_an_import_within_a_function_and_a_submodule_by_name_count() -> None:
    assert "segquant/kernels/triton_launch.py" in import_closure("segquant.kernels.operators")
    assert "segquant/kernels/operators.py" in import_closure("segquant.kernels.door")


def test_of_a_method_from_elsewhere_its_own_file_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    assert import_closure("torch.nn") == ()
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "somebodys.py").write_text(text)
        closure_digest.cache_clear()
        found.append(closure_digest("somebodys", "segquant.core"))
    assert len({*found, closure_digest("segquant.core")}) == 3


def test_the_digest_sees_every_byte(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    package = tmp_path / "baselines"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from baselines import b\n")
    (package / "b.py").write_text("x = 1\n")
    (package / "c.py").write_text("y = 1\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def digest(module: str) -> str:
        import_closure.cache_clear()
        closure_digest.cache_clear()
        return closure_digest(module)

    before = digest("baselines.a")
    (package / "c.py").write_text("y = 2\n")
    assert digest("baselines.a") == before
    (package / "b.py").write_text("x = 2\n")
    assert digest("baselines.a") != before
    import_closure.cache_clear()
    closure_digest.cache_clear()


def test_source_digest_sees_every_line() -> None:
    assert source_digest("experiments") != source_digest("experiments/store/folders.py")
