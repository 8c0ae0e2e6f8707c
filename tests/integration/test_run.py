"""One run, from config to record, on real pipelines of real classes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from evaluation.records import Record, read_record, stable_view
from tests.conftest import FAMILIES, Answer
from tests.fake_wandb import served_wandb

METHODS = "method=rtn,smoothquant,smooth_search,gptq,segquant_a,segquant_g"
Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def _records(out: Path) -> list[Record]:
    return [read_record(path) for path in sorted((out / "cells").glob("*/record.json"))]


def test_fp_against_the_reference_is_exact(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    arguments = small("tiny_mmdit", "method=fp", "bits=w16a16", f"out={tmp_path}")
    assert segbench("run", *arguments).status == 0
    (record,) = _records(tmp_path)
    assert record.status == "ok"
    assert record.execution == "float"
    assert record.metrics["psnr"].value == math.inf
    assert record.metrics["ssim"].value == 1.0
    assert record.metrics["step_error"].value == 0.0
    lpips = record.metrics["lpips"]
    assert lpips.value == 0.0 or (lpips.value is None and "weights" in lpips.note)
    assert record.metrics["fid_shapes_reference"].value == pytest.approx(0.0, abs=1e-9)


def test_the_same_command_twice_gives_equal_records(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    views = []
    for name in ("one", "two"):
        arguments = small("tiny_mmdit", "method=segquant_g", f"out={tmp_path / name}")
        assert segbench("run", *arguments).status == 0
        (record,) = _records(tmp_path / name)
        views.append(stable_view(record))
    assert views[0] == views[1]


def test_a_second_run_samples_nothing(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small("tiny_flux", "method=rtn,segquant_a", f"out={tmp_path}", "--json")
    first = segbench("run", "-m", *arguments)
    assert first.status == 0

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished sweep sampled again")

    monkeypatch.setattr("experiments.sampling.sample.sample", refuse)
    monkeypatch.setattr("experiments.sampling.calibrate.sample", refuse)
    monkeypatch.setattr("experiments.sampling.loaded.load_pipeline", refuse)
    again = segbench("run", "-m", *arguments)
    assert again.status == 0
    assert again.records == first.records
    assert "found" in again.err


def test_a_cell_alone_equals_the_cell_in_a_sweep(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    alone = small("tiny_unet", "method=segquant_a", f"out={tmp_path / 'alone'}")
    sweep = small("tiny_unet", "method=gptq,segquant_a", f"out={tmp_path / 'sweep'}")
    assert segbench("run", *alone).status == 0
    assert segbench("run", "-m", *sweep).status == 0
    (one,) = _records(tmp_path / "alone")
    (other,) = [r for r in _records(tmp_path / "sweep") if r.method == "segquant_a"]
    assert stable_view(one) == stable_view(other)


@pytest.mark.parametrize(
    ("row", "execution"),
    [
        (["method=peer_quanto", "bits=w8a16_int"], "library"),
        (["method=peer_modelopt", "bits=w8a8_fp8"], "library_simulated"),
    ],
)
def test_a_librarys_row_gets_to_its_record(
    segbench: Segbench,
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: list[str],
    execution: str,
) -> None:
    """With another's modules in the library's place, which may not be here."""

    class Rounded(nn.Linear):
        pass

    def replace(
        denoiser: nn.Module, chosen: dict[str, nn.Linear], *, loop: Any = None, **_: Any
    ) -> None:
        if loop is not None:
            loop(denoiser)
        for linear in chosen.values():
            linear.weight.data.mul_(64).round_().div_(64)
            linear.__class__ = Rounded

    monkeypatch.setattr("baselines.peers.library.find_spec", lambda name: name)
    monkeypatch.setattr("baselines.peers.quanto.Quanto.replace_layers", staticmethod(replace))
    monkeypatch.setattr("baselines.peers.modelopt._replace", replace)
    arguments = small("tiny_mmdit", *row, f"out={tmp_path}", "--json")
    first = segbench("run", *arguments)
    assert first.status == 0
    (record,) = _records(tmp_path)
    assert (record.status, record.execution) == ("ok", execution)
    assert record.metrics["step_error"].value > 0
    assert record.layers_quantized
    monkeypatch.setattr("experiments.sampling.sample.sample", None)
    assert segbench("run", *arguments).records == first.records


def test_killed_in_the_middle_it_goes_on_and_ends_the_same(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    more = ("method=segquant_a", "dataset.evaluation_prompts=24", "model.num_inference_steps=6")
    command = [sys.executable, "-m", "experiments", "run"]
    cut = small("tiny_mmdit", *more, f"out={tmp_path / 'cut'}")
    process = subprocess.Popen([*command, *cut], stderr=subprocess.PIPE, text=True)
    images = tmp_path / "cut" / "stages" / "images"
    deadline = time.monotonic() + 120
    while len(list(images.glob("*.partial/*.png"))) < 8:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = list(images.glob("*.partial/*.png"))
    assert left
    assert not list((tmp_path / "cut").rglob("record.json"))
    stamps = {path.name: path.stat().st_mtime_ns for path in left}
    assert segbench("run", *cut).status == 0
    kept = [p for p in images.rglob("*.png") if stamps.get(p.name) == p.stat().st_mtime_ns]
    assert kept, "what the killed run had made was made again"
    whole = small("tiny_mmdit", *more, f"out={tmp_path / 'whole'}")
    assert segbench("run", *whole).status == 0
    (one,), (other,) = _records(tmp_path / "cut"), _records(tmp_path / "whole")
    assert stable_view(one) == stable_view(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_every_method(
    segbench: Segbench, small: Small, tmp_path: Path, family: str
) -> None:
    bits = "bits=w8a8_int8,w4a8_int,w4a4_int"
    answer = segbench("run", "-m", *small(family, METHODS, bits, f"out={tmp_path}"), "--json")
    assert answer.status == 0, answer.err
    records = _records(tmp_path)
    assert len(records) == 18
    assert {record.status for record in records} == {"ok"}
    for record in records:
        assert record.execution == "simulated"
        assert record.layers_quantized
        assert record.metrics["psnr"].value is not None
        assert math.isfinite(record.metrics["step_error"].value or 0.0)
    assert len(list((tmp_path / "stages" / "calibration").glob("*[!k]"))) == 1


def test_a_users_own_folder_runs(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    more = ("model.call.use_resolution_binning=false", "method=segquant_a", f"out={tmp_path}")
    answer = segbench("run", *small("pixart", *more))
    assert answer.status == 0, answer.err
    (record,) = _records(tmp_path)
    assert record.status == "ok"
    assert record.model == "pixart"
    assert record.protocol["pipeline"] == "PixArtSigmaPipeline"
    assert any(layer.get("dual_scale") for layer in record.layers_quantized)


def test_the_floor_row_is_unquantized_and_close(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    more = ("method=noise_floor", "bits=w16a16", "method.batch_size=3", "method.num_threads=2")
    assert segbench("run", *small("tiny_mmdit", *more, f"out={tmp_path}")).status == 0
    (record,) = _records(tmp_path)
    assert record.execution == "float"
    assert not record.layers_quantized
    assert (record.metrics["psnr"].value or 0) > 40
    assert (record.metrics["step_error"].value or 0) < 1e-6


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baselines.rtn import RoundToNearest

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("this layer is cursed")

    monkeypatch.setattr(RoundToNearest, "quantize", broken)
    arguments = small("tiny_mmdit", "method=rtn,smoothquant", f"out={tmp_path}")
    answer = segbench("run", "-m", *arguments)
    assert answer.status == 1
    by_method = {record.method: record for record in _records(tmp_path)}
    assert by_method["rtn"].status == "failed"
    assert "cursed" in by_method["rtn"].reason
    assert "cursed" in by_method["rtn"].traceback
    assert by_method["smoothquant"].status == "ok"
    assert "cursed" in answer.out


def test_settings_reach_the_images(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    """A changed field makes another folder and other images; none is silently ignored."""
    changes = ("seed=1", "model.guidance_scale=4.0", "model.num_inference_steps=2", "")
    seen = set()
    for change in changes:
        more = [change] if change else []
        arguments = small("tiny_mmdit", "method=fp", "bits=w16a16", f"out={tmp_path}", *more)
        assert segbench("run", *arguments).status == 0
    for folder in (tmp_path / "stages" / "images").iterdir():
        seen.add(next(iter(sorted(folder.glob("*.png")))).read_bytes())
    assert len(seen) == len(changes)


def test_replayed_protocols_change_the_images_and_say_so(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    """One noise for all prompts, and JPEG before the metrics, as the authors' code has them."""
    seen: dict[str, list[bytes]] = {}
    for change in ("image=png", "image=jpeg", "latents=shared"):
        out = tmp_path / change.replace("=", "_")
        arguments = small("tiny_mmdit", "method=segquant_a", "method.alpha_grid=released", change)
        answer = segbench("run", *arguments, f"out={out}")
        assert answer.status == 0
        (record,) = _records(out)
        assert record.method_label == "segquant_a alpha_grid=released"
        assert "switch alpha_grid=released" in answer.out
        folder = next(f for f in (out / "stages" / "images").iterdir() if f.is_dir())
        seen[change] = [path.read_bytes() for path in sorted(folder.glob("*.png"))]
        if change != "image=png":
            key, value = change.split("=")
            assert record.settings[key] == value
            assert f"switch {change}" in answer.out
            assert change in record.protocol["image_format"] + record.protocol["seed_rule"]
    assert all(a != b for a, b in zip(seen["image=png"], seen["image=jpeg"], strict=True))
    assert all(a != b for a, b in zip(seen["image=png"], seen["latents=shared"], strict=True))


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_mirrors_a_run(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Runs by stage in one group, the sweep's too; the same command again changes nothing."""
    import wandb

    wandb.teardown()
    given = [a for a in small("tiny_unet", "method=rtn", f"out={tmp_path}") if "logger" not in a]
    given += [f"logger.mode={mode}", "logger.entity=me", "group=mine"]
    with served_wandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        assert segbench("run", *given).status == 0
        (record,) = _records(tmp_path)
        made = sorted(path.name for path in tmp_path.rglob("*run-2*") if path.is_dir())
        seen = {name: list(run.history) for name, run in server.runs.items()}
        assert segbench("run", *given).status == 0
        assert sorted(p.name for p in tmp_path.rglob("*run-2*") if p.is_dir()) == made
        wandb.teardown()  # what is offline is whole after it
        if mode == "offline":
            assert not server.runs
            assert segbench("sync", f"out={tmp_path}").out == f"{len(made)} runs pushed, 0 failed\n"
            seen = {name: list(run.history) for name, run in server.runs.items()}
    assert {name: list(run.history) for name, run in server.runs.items()} == seen
    assert {run.fields["groupName"] for run in server.runs.values()} == {"mine"}
    types = Counter(run.fields["jobType"] for run in server.runs.values())
    assert types == {"images": 2, "calibration": 1, "quantization": 1, "metrics": 1, "report": 1}
    own = server.runs[record.run_id]
    assert own.summary["fidelity/psnr"] == record.metrics["psnr"].value
    assert own.config["prompts_hash"]["value"] == record.protocol["prompts_hash"]
    assert own.config["git_commit"]["value"] == record.environment["git"]["commit"]
    steps = record.protocol["num_inference_steps"]
    assert sum("curve/step_error_percent" in row for row in own.history) == steps
    (kept,) = server.of_type("record")
    assert set(kept.files) == {"record.json", "per_image.csv"}
    (report,) = [run for run in server.runs.values() if run.fields["jobType"] == "report"]
    assert "rtn" in json.dumps(server.media(report, "tables/table"))
    assert {file for one in server.of_type("report") for file in one.files} >= {"table.md"}


def test_a_wandb_that_fails_costs_nothing(
    segbench: Segbench, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def down(*_: Any, **__: Any) -> None:
        raise wandb.errors.CommError("the server is on fire")

    monkeypatch.setattr(wandb, "init", down)
    arguments = [
        a for a in small("tiny_unet", "method=rtn", f"out={tmp_path}") if "logger" not in a
    ]
    answer = segbench("run", *arguments)
    assert answer.status == 0
    assert "on fire" in answer.err
    assert _records(tmp_path)[0].status == "ok"


def test_cells_run_as_jobs_of_their_own(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    """cluster=local_parallel: the same records as in one process."""
    here = small("tiny_unet", "method=rtn,segquant_a", f"out={tmp_path / 'here'}")
    jobs = small("tiny_unet", "method=rtn,segquant_a", f"out={tmp_path / 'jobs'}")
    assert segbench("run", "-m", *here).status == 0
    answer = segbench("run", "-m", *jobs, "cluster=local_parallel")
    assert answer.status == 0, answer.err
    views = [
        {record.method: stable_view(record) for record in _records(tmp_path / name)}
        for name in ("here", "jobs")
    ]
    assert views[0] == views[1]
    assert len(list((tmp_path / "jobs" / "stages" / "calibration").glob("*[!k]"))) == 1
