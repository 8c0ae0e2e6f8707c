import subprocess
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.offline_runs import sync_runs

pytest.importorskip("wandb")

DAMAGED: dict[str, tuple[bytes | None, str]] = {
    "no file": (None, "holds no .wandb file"),
    "empty": (b"", "bad header"),
    "cut short": (b":W&B" + bytes(60), "bad header"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_run_is_not_pushed(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own command answers 0 and says ERROR in words."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    content, said = DAMAGED[kind]
    folder = tmp_path / "offline-run-20200101_000000-aaaaaaaa"
    folder.mkdir()
    if content is not None:
        (folder / "run-aaaaaaaa.wandb").write_bytes(content)
    (pushed,) = sync_runs(tmp_path)
    assert pushed.folder == folder
    assert said in pushed.error


@pytest.mark.parametrize(
    ("marked", "status", "said", "error"),
    [
        (True, 0, "wandb: Done.", ""),
        (True, 0, "wandb: ERROR Failed to read", "ERROR Failed to read"),
        (False, 0, "wandb: No runs to sync.", "No runs to sync."),
        (False, 1, "", "exit status 1"),
    ],
)
def test_a_run_is_pushed_when_its_mark_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool, status: int, said: str,
    error: str,
) -> None:  # fmt: skip
    folder = tmp_path / "deep" / "offline-run-20200101_000000-aaaaaaaa"
    folder.mkdir(parents=True)
    (folder / "run-aaaaaaaa.wandb").write_bytes(b"whole")

    def command(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        if marked:
            (folder / "run-aaaaaaaa.wandb.synced").touch()
        return subprocess.CompletedProcess([], status, stdout="", stderr=said)

    monkeypatch.setattr("evaluation.report.offline_runs.subprocess.run", command)
    assert [run.error for run in sync_runs(tmp_path)] == [error]
    assert len(sync_runs(tmp_path)) == (not marked)
