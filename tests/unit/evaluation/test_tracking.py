import json
import logging
import math
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.images import write_png
from evaluation.records import Metric, Record, write_record
from evaluation.report.tracking import (
    ImageRow,
    TrackingSettings,
    flat_metrics,
    log_record,
    sync_runs,
)

wandb = pytest.importorskip("wandb")


def make_record(run_id: str = "abc") -> Record:
    psnr = Metric(
        value=30.0, higher_is_better=True, n=3, against="reference", interval=[29.0, 31.0]
    )  # fmt: skip
    ssim = Metric(value=math.inf, higher_is_better=True, n=3, against="reference")
    lpips = Metric(value=None, higher_is_better=False, n=0, against="reference", note="none")
    return Record(
        run_id=run_id, status="ok", model="tiny", method="rtn", bits="w8a8", dataset="shapes",
        seed=0, metrics={"psnr": psnr, "infinite": ssim, "lpips": lpips}, weight_bytes=1000,
        seconds={"generate": 2.0},
    )  # fmt: skip


def read_back(run_dir: Path) -> list[Any]:
    """Every record of an offline run, once it is whole.

    `finish()` returns before W&B's background process has written the file to its end; the last
    record is the exit.
    """
    for _ in range(600):
        messages = read_messages(run_dir)
        if any(message.WhichOneof("record_type") == "exit" for message in messages):
            return messages
        time.sleep(0.1)
    raise AssertionError(f"{run_dir}: the run has no end")


def read_messages(run_dir: Path) -> list[Any]:
    """LevelDB log framing around protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    offset, block, parts, messages = 7, 32768, b"", []
    while offset + 7 <= len(data):
        left = block - offset % block
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        if offset + 7 + length > len(data):
            break  # still being written
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            message = Message()
            message.ParseFromString(parts)
            messages.append(message)
            parts = b""
    return messages


def test_offline_run_holds_everything(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), dtype=np.uint8))
    rows = [
        ImageRow(
            prompt_id=f"p{i}", prompt="red", reference=tmp_path / "a.png", image=tmp_path / "a.png"
        )
        for i in range(3)
    ]
    before = dict(os.environ)
    reason = log_record(
        make_record(), settings=TrackingSettings(max_images=2), config={"model": {"steps": 4}},
        image_paths=rows, group="sweep-7", run_dir=tmp_path / "first",
    )  # fmt: skip
    assert reason == ""
    changed = {
        name for name in set(os.environ) | set(before) if os.environ.get(name) != before.get(name)
    }
    assert changed <= {"WANDB_SERVICE"}  # W&B's own, for its background process
    messages = read_back(tmp_path / "first")
    (run,) = [m.run for m in messages if m.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert run.run_group == "sweep-7"
    assert config["model"] == {"steps": 4}
    assert config["higher_is_better"] == {"psnr": True, "infinite": True, "lpips": False}
    assert list(run.tags) == ["tiny", "rtn", "w8a8", "ok"]
    summary = {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for m in messages
        if m.WhichOneof("record_type") == "summary"
        for item in m.summary.update
    }
    assert summary["psnr"] == 30.0
    assert summary["psnr/low"] == 29.0
    assert summary["psnr/high"] == 31.0
    assert summary["weight_bytes"] == 1000
    assert summary["status"] == "ok"
    artifacts = [m.artifact for m in messages if m.WhichOneof("record_type") == "artifact"]
    (stored,) = [item for item in artifacts if item.type == "record"]
    entries = {entry.path: entry for entry in stored.manifest.contents}
    write_record(tmp_path / "expected.json", make_record())
    logged = Path(entries["record.json"].local_path).read_bytes()
    assert logged == (tmp_path / "expected.json").read_bytes()
    (table,) = (tmp_path / "first").glob("wandb/offline-run-*/files/media/table/*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["prompt_id", "prompt", "reference", "image"]
    assert [row[:2] for row in content["data"]] == [["p0", "red"], ["p1", "red"]]

    # a second cell of the sweep, in the same process, lands in its own folder
    assert not log_record(
        make_record("def"), settings=TrackingSettings(), config={}, group="sweep-7",
        run_dir=tmp_path / "second",
    )  # fmt: skip
    assert len(list((tmp_path / "first").glob("wandb/offline-run-*"))) == 1
    assert read_back(tmp_path / "second")


def test_failing_wandb_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: object) -> None:
        raise wandb.errors.CommError("the server is away")

    monkeypatch.setattr(wandb, "init", fail)
    with caplog.at_level(logging.WARNING, logger="evaluation.report.tracking"):
        reason = log_record(
            make_record(), settings=TrackingSettings(), config={}, group="g", run_dir=tmp_path
        )
    assert "the server is away" in reason
    assert "the server is away" in caplog.text


def test_failure_in_the_middle_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []

    class Run:
        summary: dict[str, Any] = {}  # noqa: RUF012

        def log(self, _: object) -> None:
            raise OSError("disk full")

        def finish(self, exit_code: int) -> None:
            finished.append(exit_code)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    reason = log_record(
        make_record(), settings=TrackingSettings(), config={}, group="g", run_dir=tmp_path
    )
    assert "disk full" in reason
    assert finished == [1]


def test_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(**arguments: object) -> None:
        seen.append(arguments)
        raise RuntimeError("enough")

    monkeypatch.setattr(wandb, "init", note)
    for mode in ("disabled", "offline", "online"):
        settings = TrackingSettings(mode=mode, project="mine", entity="me")
        log_record(make_record(), settings=settings, config={}, group="g", run_dir=tmp_path)
    assert [item["mode"] for item in seen] == ["offline", "online"]
    assert {item["project"] for item in seen} == {"mine"}
    assert {item["group"] for item in seen} == {"g"}
    with pytest.raises(ValueError, match="offline, online, disabled"):
        TrackingSettings(mode="onlin")


def test_flat_metrics_leaves_out_what_has_no_value() -> None:
    flat = flat_metrics(make_record())
    assert "lpips" not in flat
    assert flat["infinite"] == math.inf
    assert flat["seconds/generate"] == 2.0


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

    monkeypatch.setattr("evaluation.report.tracking.subprocess.run", command)
    assert [run.error for run in sync_runs(tmp_path)] == [error]
    assert len(sync_runs(tmp_path)) == (not marked)
