import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.images import write_png
from evaluation.records import Metric, Record
from evaluation.report import tracked_view, tracking
from evaluation.report.offline_runs import sync_runs
from evaluation.report.tracked_run import (
    FilesOf,
    Findings,
    PromptRow,
    TrackedRun,
    curve_of,
    metric_values,
    record_config,
    record_findings,
)
from evaluation.report.tracked_view import save_view
from evaluation.report.tracking import TrackingSettings, brightened_difference, tracked
from tests.fake_wandb import EVENTS, FakeWandb, served_wandb
from tests.offline_wandb import config_of, history_of, inspect_run, read_back, summary_of

wandb = pytest.importorskip("wandb")


def make_record(run_id: str = "abc", psnr: float = 30.0) -> Record:
    metrics = {
        "psnr": Metric(
            value=psnr, higher_is_better=True, n=3, against="reference", interval=[29, 31]
        ),
        "ssim": Metric(value=math.inf, higher_is_better=True, n=3, against="reference"),
        "lpips": Metric(value=None, higher_is_better=False, n=0, against="reference", note="none"),
        "fid_shapes_dataset": Metric(
            value=3.5, higher_is_better=False, n=3, against="dataset", interval=[-math.inf, 4.0]
        ),
    }  # fmt: skip
    return Record(
        run_id=run_id, status="ok", model="tiny", method="rtn", bits="w8a8", dataset="shapes",
        seed=0, metrics=metrics, weight_bytes=1000, seconds={"images": 2.0, "seconds_per_image": 1},
        protocol={"prompts_hash": "h", "scheduler": {"class": "Euler"}, "odd": math.inf},
        environment={"git": {"commit": "c0", "dirty": True}, "packages": {"torch": "2"},
                     "device": "cpu"},
    )  # fmt: skip


def make_run(run_id: str = "abc", **more: Any) -> TrackedRun:
    given: dict[str, Any] = {
        **{"id": run_id, "name": "tiny rtn", "group": "sweep-7", "job_type": "metrics"},
        **{"tags": ("tiny", "rtn"), "config": {"given": {"steps": 4}}},
    }
    return TrackedRun(**given | more)


def make_findings(folder: Path, record: Record) -> Findings:
    write_png(folder / "a.png", np.zeros((8, 8, 3), dtype=np.uint8))
    write_png(folder / "b.png", np.full((8, 8, 3), 3, dtype=np.uint8))
    (folder / "per_image.csv").write_text("id,psnr\np0,30\n")
    findings = record_findings(record)
    findings.curve = curve_of({"p0": [0.0, 0.1, 0.2], "p1": [0.0, 0.3, 0.4]})
    findings.prompts = [
        PromptRow(
            prompt_id=f"p{i}", prompt="a red circle", reference=folder / "a.png",
            image=folder / "b.png", scores={"psnr": 30.0 + i, "ssim": math.inf},
        )
        for i in range(3)
    ]  # fmt: skip
    findings.artifact = FilesOf(
        name=f"record-{record.run_id}", type="record",
        files={"per_image.csv": folder / "per_image.csv"}, metadata={"model": "tiny"},
    )  # fmt: skip
    return findings


def log(
    folder: Path, record: Record, *, mode: str = "offline", run: TrackedRun | None = None,
    **more: Any,
) -> str:  # fmt: skip
    settings = TrackingSettings(mode=mode, max_images=2, entity="me", project="p")
    findings = make_findings(folder.parent, record)
    with tracked(
        run or make_run(record.run_id), settings=settings, folder=folder, **more
    ) as opened:
        opened.tell(findings, config=record_config(record, config={"steps": 4}))
    return opened.reason


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    wandb.teardown()
    with served_wandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield fake
        wandb.teardown()


def test_names_are_stable_and_sort_and_infinities_have_a_name_of_their_own() -> None:
    values = metric_values(make_record())
    assert values == {
        "fidelity/psnr": 30.0,
        "fidelity/psnr_low": 29,
        "fidelity/psnr_high": 31,
        "fidelity/ssim_infinite": 1.0,
        "quality/fid_shapes_dataset": 3.5,
        "quality/fid_shapes_dataset_high": 4.0,
    }
    summary = record_findings(make_record()).summary
    assert summary["cost/seconds_images"] == 2.0
    assert summary["cost/seconds_per_image"] == 1
    assert summary["cost/weight_bytes"] == 1000
    assert all(isinstance(v, str) or math.isfinite(v) for v in summary.values())


def test_an_offline_run_holds_everything(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert log(tmp_path / "first", make_record()) == ""
    after = dict(os.environ)
    changed = {name for name in {*after, *before} if after.get(name) != before.get(name)}
    assert changed <= {"WANDB_SERVICE"}  # W&B's own, for its background process
    messages = read_back(tmp_path / "first")
    (run,) = [m.run for m in messages if m.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.job_type) == ("abc", "sweep-7", "metrics")
    assert list(run.tags) == ["tiny", "rtn"]
    config = config_of(messages)
    assert config["git_commit"] == "c0"
    assert config["prompts_hash"] == "h"
    assert config["packages"] == {"torch": "2"}
    assert config["protocol"]["scheduler"] == {"class": "Euler"}
    assert config["protocol"]["odd"] == "inf"
    assert config["given"] == {"steps": 4}
    assert config["higher_is_better"]["fidelity/psnr"] is True
    summary = summary_of(messages)
    assert summary["fidelity/psnr"] == 30.0
    assert summary["quality/fid_shapes_dataset"] == 3.5
    assert summary["status"] == "ok"
    history = history_of(messages)
    assert [row["curve/step_error_percent"] for row in history[:3]] == [
        0.0,
        20.0,
        pytest.approx(30),
    ]
    assert [row["denoising_step"] for row in history[:3]] == [0, 1, 2]
    assert history[3]["fidelity/psnr"] == 30.0
    goals = {
        m.metric.name: (m.metric.summary.min, m.metric.summary.max)
        for m in messages
        if m.WhichOneof("record_type") == "metric"
    }
    assert goals["fidelity/psnr"] == (False, True)
    assert goals["quality/fid_shapes_dataset"] == (True, False)
    kept = {
        m.artifact.type: {e.path: Path(e.local_path) for e in m.artifact.manifest.contents}
        for m in messages
        if m.WhichOneof("record_type") == "artifact"
    }
    assert list(kept["record"]) == ["per_image.csv"]
    content = json.loads(kept["run_table"]["prompts.table.json"].read_text())
    assert content["columns"] == [
        *("prompt_id", "prompt", "reference", "image", "difference", "psnr", "ssim")
    ]
    assert [row[:2] for row in content["data"]] == [["p0", "a red circle"], ["p1", "a red circle"]]
    picture = content["data"][0][4]
    assert picture["caption"] == "|image - reference| x 64"
    with Image.open(kept["run_table"][picture["path"]]) as difference:
        assert np.asarray(difference).max() == 3 * 64
    assert content["data"][1][5:] == [31.0, None]

    said = inspect_run(tmp_path / "first")
    assert (said["state"], said["run_id"], said["step"]) == ("finished", "abc", 3)
    assert said["summary"]["fidelity/psnr"] == 30.0
    assert said["config"]["protocol"]["scheduler"] == {"class": "Euler"}

    # a second cell of the sweep, in the same process, lands in its own folder
    assert log(tmp_path / "second", make_record("def")) == ""
    assert len(list((tmp_path / "first").glob("wandb/offline-run-*"))) == 1
    assert read_back(tmp_path / "second")


def test_differences_are_brightened_by_what_their_caption_says(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((4, 4, 3), 100, dtype=np.uint8))
    write_png(tmp_path / "b.png", np.full((4, 4, 3), 95, dtype=np.uint8))
    picture, gain = brightened_difference(tmp_path / "a.png", tmp_path / "b.png")
    assert gain == 32
    assert np.asarray(picture).max() == 160
    assert isinstance(picture, Image.Image)
    same, gain = brightened_difference(tmp_path / "a.png", tmp_path / "a.png")
    assert (np.asarray(same).max(), gain) == (0, 128)


def test_online_a_run_is_found_by_its_id_and_resumed(tmp_path: Path, server: FakeWandb) -> None:
    """A cell that runs again, or was requeued, goes on in its run: nothing is there twice."""
    assert log(tmp_path / "first", make_record(), mode="online", system=True) == ""
    first = [dict(row) for row in server.runs["abc"].history]
    assert log(tmp_path / "second", make_record(psnr=25.0), mode="online", system=True) == ""
    assert list(server.runs) == ["abc"]
    run = server.runs["abc"]
    assert run.starts == 1  # the first time there was nothing to resume
    assert run.history == first
    assert [row.get("denoising_step") for row in first] == [0, 1, 2, None]
    assert run.summary["fidelity/psnr"] == 25.0  # the latest
    assert "Infinity" not in json.dumps(run.summary)
    assert (run.complete, run.exit_code) == (True, 0)
    assert run.fields["groupName"] == "sweep-7"
    assert run.fields["jobType"] == "metrics"
    assert run.config["git_commit"]["value"] == "c0"
    assert run.config["protocol"]["value"]["scheduler"] == {"class": "Euler"}
    for kept in server.of_type("run_table"):  # pictures lie in it; a version for other scores
        table = json.loads(kept.files["prompts.table.json"])
        assert len(table["data"]) == 2
        assert all(cell["path"] in kept.manifest["contents"] for cell in table["data"][0][2:5])
    (record,) = server.of_type("record")
    assert record.files["per_image.csv"] == b"id,psnr\np0,30\n"
    assert set(server.unknown) <= {"ServerFeaturesQuery"}


def test_system_metrics_are_of_the_time_that_a_run_is_open(
    tmp_path: Path, server: FakeWandb
) -> None:
    assert log(tmp_path / "with", make_record("with"), mode="online", system=True) == ""
    assert log(tmp_path / "out", make_record("out"), mode="online") == ""
    seen = {name for row in server.runs["with"].read(EVENTS) for name in row}
    assert "system.memory_percent" in seen
    assert not server.runs["out"].read(EVENTS)


def test_a_run_that_ended_in_the_middle_goes_on_in_the_same(
    tmp_path: Path, server: FakeWandb
) -> None:
    settings = TrackingSettings(mode="online", entity="me", project="p")
    with (
        pytest.raises(KeyboardInterrupt),
        tracked(make_run(), settings=settings, folder=tmp_path / "first"),
    ):
        raise KeyboardInterrupt
    assert server.runs["abc"].exit_code == 1
    assert log(tmp_path / "second", make_record(), mode="online") == ""
    assert list(server.runs) == ["abc"]
    assert len(server.runs["abc"].history) == 4
    assert server.runs["abc"].exit_code == 0


def test_offline_runs_of_one_id_are_one_run_once_they_are_pushed(
    tmp_path: Path, server: FakeWandb
) -> None:
    """W&B's command puts them after one another: a later one holds what the earlier ones lack."""
    for number, psnr in enumerate((30.0, 30.0, 25.0)):
        assert log(tmp_path / "cell", make_record(psnr=psnr)) == ""
        (made,) = (tmp_path / "cell").glob("wandb/offline-run-202[5-9]*")
        assert read_back(tmp_path / "cell", pattern=made.name)
        made.rename(made.with_name(f"offline-run-20200101_00000{number}-abc"))
    assert [pushed.error for pushed in sync_runs(tmp_path)] == ["", "", ""]
    assert list(server.runs) == ["abc"]
    run = server.runs["abc"]
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4]
    assert [row.get("fidelity/psnr") for row in run.history] == [None, None, None, 30.0, 25.0]
    assert run.summary["fidelity/psnr"] == 25.0
    assert len(server.of_type("record")) == 1
    assert sync_runs(tmp_path) == []


def test_tables_and_pictures_of_a_sweep(tmp_path: Path, server: FakeWandb) -> None:
    write_png(tmp_path / "sheet.png", np.zeros((8, 8, 3), dtype=np.uint8))
    (tmp_path / "table.csv").write_text("method,psnr,step error\nfp,,0\nrtn,30.5,0.1 *\n")
    findings = Findings(
        tables={"tables/table": tmp_path / "table.csv"},
        pictures={"pictures/sheet": tmp_path / "sheet.png"},
    )
    settings = TrackingSettings(mode="online", entity="me", project="p")
    run = make_run("sweep", job_type="report")
    with tracked(run, settings=settings, folder=tmp_path / "r") as opened:
        opened.tell(findings)
    assert opened.reason == ""
    table = server.media(server.runs["sweep"], "tables/table")
    assert table["columns"] == ["method", "psnr", "step error"]
    assert table["data"] == [["fp", None, "0"], ["rtn", 30.5, "0.1 *"]]
    assert server.runs["sweep"].summary["pictures/sheet"]["path"] in server.runs["sweep"].files
    assert server.runs["sweep"].fields["jobType"] == "report"


def test_a_view_of_a_sweep_is_saved_once(tmp_path: Path, server: FakeWandb) -> None:
    pytest.importorskip("wandb_workspaces")
    metrics = ["fidelity/psnr", "quality/fid_shapes_dataset"]
    for _ in range(2):
        given = {"entity": "me", "project": "p", "kept": tmp_path / "view.json"}
        assert save_view("sweep-7", metrics=metrics, **given) == ""
    ((name, view),) = server.views.items()
    assert view["id"] == f"view-{name}"
    assert view["displayName"] == "sweep sweep-7"
    for word in ("fidelity/psnr", "quality/fid_shapes_dataset", "curve/step_error", "sweep-7"):
        assert word in view["spec"]


def test_a_view_without_its_package_or_server_is_a_reason(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"entity": "me", "project": "p", "kept": tmp_path / "view.json"}
    server.refuses = True
    assert "no saved view" in save_view("g", metrics=["fidelity/psnr"], **given)
    monkeypatch.setattr(tracked_view, "find_spec", lambda _: None)
    assert "wandb-workspaces is not installed" in save_view("g", metrics=[], **given)


def test_a_server_that_refuses_costs_nothing(
    tmp_path: Path, server: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses = True
    with caplog.at_level(logging.WARNING, logger="evaluation.report.tracking"):
        reason = log(tmp_path / "r", make_record(), mode="online")
    assert reason.startswith("W&B failed")
    assert reason in caplog.text


def test_a_server_that_goes_away_in_the_middle_is_not_waited_for(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own settings try again for hours and keep the process that long at its end."""
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 2)
    monkeypatch.setattr(tracking, "_RETRIES", 0)
    settings = TrackingSettings(mode="online", entity="me", project="p")
    with tracked(make_run(), settings=settings, folder=tmp_path / "r") as opened:
        server.silent = True
        opened.tell(record_findings(make_record()))
    wandb.teardown()
    assert "fidelity/psnr" not in server.runs["abc"].summary
    assert list((tmp_path / "r").glob("wandb/run-*/run-abc.wandb"))  # for sync, later


def test_failing_wandb_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise wandb.errors.CommError("the server is away")

    monkeypatch.setattr(wandb, "init", fail)
    assert "the server is away" in log(tmp_path / "r", make_record())


def test_failure_in_the_middle_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []

    class Run:
        @property
        def config(self) -> None:
            raise OSError("disk full")

        def finish(self, exit_code: int) -> None:
            finished.append(exit_code)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    assert "disk full" in log(tmp_path / "r", make_record())
    assert finished == [1]


def test_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def note(**arguments: object) -> None:
        seen.append(arguments)
        raise RuntimeError("enough")

    monkeypatch.setattr(wandb, "init", note)
    for mode in ("disabled", "offline", "online"):
        log(tmp_path / "r", replace(make_record(), run_id=mode), mode=mode)
    assert [(item["mode"], item["resume"], item["id"]) for item in seen] == [
        ("offline", None, "offline"),
        ("online", "allow", "online"),
    ]
    with pytest.raises(ValueError, match="offline, online, disabled"):
        TrackingSettings(mode="onlin")
