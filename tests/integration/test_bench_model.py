"""`segbench bench-model` with the words of a run: a real pipeline, one step and whole images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from experiments.config.request import read_request
from experiments.speed.time_cells import SpeedRequest, measure_cell
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]
FEW = ("--no-compile", "--batches", "1", "2", "--images", "2", "--budget-seconds", "0")


def test_a_step_and_whole_images_of_a_runs_denoisers(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    words = small("tiny_unet", "method=rtn", "bits=w8a8_int8", f"out={tmp_path / 'runs'}")
    answer = segbench("bench-model", *words, *FEW, "--out", f"{tmp_path}", "--json")
    assert answer.status == 0, answer.err
    rows = json.loads(answer.out)["rows"]
    assert [(row["method"], row["batch"], row["mode"]) for row in rows] == [
        *(("fp", batch, "eager") for batch in (1, 2)),
        *(("rtn", batch, "eager") for batch in (1, 2)),
    ]
    assert {row["execution"] for row in rows} == {"float", "kernel"}
    for row in rows:
        assert row["status"] == "ok", row
        assert row["step"]["warmups"] == 10
        assert row["image"]["warmups"] == 2
        assert row["peak_resident_bytes"] > row["device_bytes"] > 0
        assert row["disk_bytes"] > 0
        assert row["note"] == "no NVML on a CPU"
        assert row["step_baseline"] == "fp eager, float32"
    assert rows[2]["device_bytes"] < rows[0]["device_bytes"]
    text = (tmp_path / "bench_cells.md").read_text()
    assert "This is no GPU" in text
    lines = list(csv.DictReader((tmp_path / "bench_cells.csv").open()))
    assert len(lines) == len(rows)


def test_what_is_simulated_is_loaded_said_and_not_timed(small: Small, tmp_path: Path) -> None:
    words = small("tiny_unet", "method=rtn", f"out={tmp_path}", "execution=simulated")
    (config,) = read_request(words, multirun=True).cells
    (row,) = measure_cell(config, SpeedRequest(batches=(1,)))
    assert row["status"] == "simulated"
    assert "execution=auto runs codes" in row["reason"]
    assert row["theoretical_bytes"] > 0
    assert not {"step", "image", "device_bytes", "joules_per_image"} & set(row)


def test_options_of_full_sizes_go_with_no_words(segbench: Segbench) -> None:
    answer = segbench("bench-model", "model=tiny_unet", "--small")
    assert (answer.status, "--models, --small and --device" in answer.err) == (2, True)
    answer = segbench("bench-model", "model=tiny_unet", "--batches", "0")
    assert (answer.status, "give 1 or more" in answer.err) == (2, True)
    answer = segbench("bench-model", "modle=tiny_unet")
    assert answer.status == 2
