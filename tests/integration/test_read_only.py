"""A store that cannot be written: verbs that only read answer on stdout all the same."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer

Segbench = Callable[..., Answer]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A file system mounted read-only, as far as a process that may write anywhere can see one."""

    def refuse(root: Path) -> None:
        def guarded(genuine: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                inside = not isinstance(path, int) and Path(path).is_relative_to(root)
                if inside and writes(*args, **kwargs):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return genuine(path, *args, **kwargs)

            return call

        always = lambda *_, **__: True  # noqa: E731
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir", "symlink", "utime"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name), always))
        to_write = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        opens = guarded(os.open, lambda flags, *_, **__: bool(flags & to_write))
        monkeypatch.setattr(os, "open", opens)
        reads = guarded(io.open, lambda mode="r", *_, **__: bool(set(mode) & set("wax+")))
        monkeypatch.setattr(io, "open", reads)
        monkeypatch.setattr("builtins.open", reads)

    return refuse


@pytest.mark.parametrize("reports", ["there", "not there"])
def test_a_store_that_cannot_be_written_is_read(
    segbench: Segbench,
    small: Callable[..., list[str]],
    tmp_path: Path,
    read_only: Callable[[Path], None],
    reports: str,
) -> None:
    out = tmp_path / "out"
    words = small(
        "tiny_unet", "method=rtn,smoothquant", f"out={out}", "model.num_inference_steps=1"
    )
    assert segbench("run", "-m", *words).status == 0
    verbs = ("status", "table", "compare")
    whole = {verb: segbench(verb, "-m", *words).out for verb in verbs}
    (out / "stages" / "file_hashes.json").unlink()  # what is known of files is not kept either
    if reports == "not there":
        (out / "reports").rename(tmp_path / "elsewhere")
    read_only(out)
    for verb in verbs:
        answer = segbench(verb, "-m", *words)
        assert (answer.status, answer.out) == (0, whole[verb]), answer.err
        said = answer.err.count("cannot be written (Read-only file system); no report")
        assert said == (verb != "status"), answer.err
        assert "wrote" not in answer.err
    refused = segbench("run", "-m", *words)
    assert refused.status == 2
    assert "cannot write there (Read-only file system)" in refused.err
    assert segbench("verify", f"out={out}").status == 0
