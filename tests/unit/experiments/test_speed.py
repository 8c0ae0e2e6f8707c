"""The speed verbs on a CPU: the code paths of a GPU as far as a CPU has them, and the books."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.speed import arguments, candidates, command, timing
from experiments.speed import libraries as peers
from experiments.speed import time_products as kernels
from experiments.speed.acceptance import ITEMS, MODEL_ITEMS, acceptance
from experiments.speed.full_sizes import MODELS, Shape, post_activation, shapes
from experiments.speed.setting import Candidate, Setting
from segquant.kernels.choice import TABLE
from tests.conftest import Answer

Segbench = Callable[..., Answer]
ROOT = Path(__file__).resolve().parents[3]
FAST = ("--device", "cpu", "--small", "--no-compile")


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repeat is enough to run the code."""
    monkeypatch.setattr(timing, "LEAST_REPEATS", 1)
    monkeypatch.setattr(timing, "MOST_REPEATS", 1)


def test_the_kernels_are_checked_and_timed_at_every_shape(
    segbench: Segbench, tmp_path: Path
) -> None:
    answer = segbench("bench-kernels", *FAST, "--models", "flux.1-dev", "--out", f"{tmp_path}")
    assert answer.status == 0, answer.err
    result = json.loads((tmp_path / "bench_kernels.json").read_text())
    assert not result["not_measured"]
    names: set[str] = set()
    for entry in result["shapes"]:
        for row in entry["rows_measured"]:
            names.add(row["name"])
            assert row["status"] in ("ok", "simulated"), row
            assert ("seconds" in row) == (row["status"] == "ok")
    assert {"bf16", "symmetric", "dual", "dual, two products", "_int_mm", "w4a8"} <= names
    assert "fp8" in names
    text = (tmp_path / "bench_kernels.md").read_text()
    assert text == answer.out
    assert "This is no GPU" in text
    assert text.count("not measured") >= len(ITEMS)


def test_a_step_of_each_variant(segbench: Segbench, tmp_path: Path) -> None:
    answer = segbench("bench-model", *FAST, "--models", "sdxl", "--json")
    assert answer.status == 0, answer.err
    rows = {row["variant"]: row for row in json.loads(answer.out)["rows"]}
    assert rows["fp8"]["status"] == "simulated"
    assert "seconds" not in rows["fp8"]
    for name in ("int8", "int8, dual", "int8 by token", "int8, zero point", "int8, fused"):
        assert rows[name]["status"] == "ok", rows[name]
        assert rows[name]["linear_bytes_ratio"] < 0.56
        assert 0 < rows[name]["relative_error"] < 0.2
    assert rows["bf16"]["relative_error"] == 0


def test_time_that_is_up_is_said(segbench: Segbench) -> None:
    more = ("--models", "sdxl", "--budget-seconds", "0", "--json")
    found = json.loads(segbench("bench-kernels", *FAST, *more).out)
    assert found["shapes"] == []
    assert len(found["not_measured"]) == len(kernels.merge(shapes(MODELS["sdxl"], small=True)))
    rows = json.loads(segbench("bench-model", *FAST, *more).out)["rows"]
    assert {row["status"] for row in rows} == {"not measured"}


def test_wrong_requests(segbench: Segbench) -> None:
    answer = segbench("bench-kernels", *FAST, "--models", "sd9")
    assert (answer.status, "choose from sd35-medium" in answer.err) == (2, True)
    answer = segbench("bench-kernels", *FAST, "--write-table")
    assert (answer.status, "this is a CPU" in answer.err) == (2, True)
    assert tuple(MODELS) == arguments.MODEL_NAMES


def shape(rows: int = 4608, features: tuple[int, int] = (3072, 3072), model: str = "m") -> Shape:
    n, k = features
    return Shape(
        model=model,
        rows=rows,
        in_features=k,
        out_features=n,
        after="",
        count=1,
        example="layer",
    )


def ready(call: Callable[[], torch.Tensor], tolerance: float = 0.0) -> Candidate:
    return Candidate(
        name="c",
        what="",
        call=call,
        expected=lambda: torch.ones(2, 3, dtype=torch.float64),
        tolerance=tolerance,
    )


def test_a_wrong_candidate_is_not_timed() -> None:
    timer = timing.Timer(device=torch.device("cpu"), budget_seconds=100)
    good = kernels._row(ready(lambda: torch.ones(2, 3)), shape(), timer)
    assert good["status"] == "ok"
    wrong = kernels._row(ready(lambda: torch.full((2, 3), 1.5)), shape(), timer)
    unwritten = kernels._row(ready(lambda: torch.full((2, 3), float("nan"))), shape(), timer)
    assert wrong["status"] == unwritten["status"] == "wrong"
    assert "seconds" not in wrong

    def refuses() -> torch.Tensor:
        raise RuntimeError("no such shape")

    assert kernels._row(ready(refuses), shape(), timer)["reason"] == "RuntimeError: no such shape"


def made_result(seconds: dict[str, float], **more: Any) -> dict[str, Any]:
    """A result as a GPU would give it; the numbers stand for nothing."""
    rows = [
        {"name": k, "status": "ok", "seconds": v, "per_second": 1e15, "what": "", "spread": 0.0}
        for k, v in seconds.items()
    ]
    entry = {
        "model": "flux.1-dev",
        "rows": 4608,
        "in_features": 3072,
        "out_features": 3072,
        "after": "",
        "count": 2,
        "rows_measured": rows,
    }
    return {
        "device_kind": "cuda",
        "capability": "sm_90",
        "shapes": [entry | more],
        "ceilings": {"copy_bytes_per_second": 4e12},
    }


def test_acceptance_holds_measurements_against_the_minimum() -> None:
    result = made_result({"bf16": 2.0, "symmetric product": 1.0, "dual product": 2.5})
    rows = {row["item"].split(",")[0]: row for row in acceptance(result)}
    assert rows["bf16 / int8 product"]["state"] == "met"
    assert rows["bf16 / int8 product"]["measured"] == 2.0
    assert rows["DualScale product / our single product"]["state"] == "MISSED"
    assert rows["product with rank 32 / plain product"]["state"] == "not measured"
    assert all(
        row["state"] == "not measured" for row in acceptance(result | {"device_kind": "cpu"})
    )


def test_the_table_takes_the_fastest_way_and_its_ratio(tmp_path: Path) -> None:
    seconds = {"bf16": 3.0, "bf16 compiled": 2.0, "symmetric": 1.0, "_int_mm + epilogue": 0.8}
    table = tmp_path / "table.json"
    table.write_text(TABLE.read_text())
    command.write_table(made_result(seconds), table)
    (entry,) = json.loads(table.read_text())["devices"]["sm_90"]["3072x3072"]
    assert entry == {"rows": 4608, "way": "int_mm", "ratio_to_bf16": 2.5}
    few = made_result({"bf16": 3.0, "symmetric": 1.0}, rows=1)
    assert kernels.speed_table(few)["sm_90"]["3072x3072"][0]["way"] == "triton_small"
    result = made_result({"bf16": 4.0, "symmetric": 1.0})
    assert kernels.mean_ratio(result, "flux.1-dev", "symmetric") == pytest.approx(4.0)
    assert kernels.mean_ratio(result, "flux.1-dev", "fp8") is None


def test_shapes_of_several_models_are_measured_once_and_the_heaviest_first() -> None:
    found = kernels.merge([shape(1), shape(64, model="other"), shape(1, model="other")])
    assert [one.rows for one in found] == [64, 1]


def test_full_size_shapes_are_those_of_the_published_models() -> None:
    """The AdaLN of FLUX, which the paper's table 8 times, and the feed-forward of SD3.5-medium."""
    found = {
        (s.rows, s.in_features, s.out_features): s
        for s in shapes(MODELS["flux.1-dev"], small=False)
    }
    assert found[1, 3072, 18432].count == 38
    assert found[4608, 15360, 3072].after == "part of it"
    assert found[4608, 3072, 3072].count == 114
    assert post_activation("transformer_blocks.0.ff.net.2") == "feed-forward"
    assert post_activation("transformer_blocks.0.ff.net.0.proj") == ""


def test_what_only_triton_runs_is_right_in_its_interpreter() -> None:
    """Tiles, the low-rank branch, GELU and codes in the epilogue: a GPU's rows, interpreted."""
    code = """
import json, torch
from experiments.speed import candidates
from experiments.speed import time_products as kernels
from experiments.speed.full_sizes import Shape
from experiments.speed.setting import Setting
from segquant.kernels import ActivationCode
shape = Shape(model="m", rows=20, in_features=32, out_features=48, after="x", count=1, example="l")
setting = Setting(shape=shape, device=torch.device("cpu"), compiled=False)
found = candidates.extras(setting)
found += [one for code in (ActivationCode.symmetric, ActivationCode.dual)
          for one in candidates.tiles(setting, code)]
errors = {one.name: [kernels.check(one, setting.device), one.tolerance] for one in found}
print(json.dumps(errors))
"""
    made = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    errors = json.loads(made.stdout)
    assert len(errors) == 2 + 5 + 4
    for name, (error, tolerance) in errors.items():
        assert error <= 2 * tolerance, name  # the interpreter cuts bfloat16 off


def test_a_models_figures_are_held_against_the_minimum() -> None:
    row = {"variant": "int8", "status": "ok", "linear_bytes_ratio": 0.53}
    rows = [row | {"model": "flux.1-dev", "ratio_to_bf16": 1.3}]
    rows += [row | {"model": "sd35-medium", "ratio_to_bf16": 1.0}]
    found = acceptance({"device_kind": "cuda", "rows": rows}, MODEL_ITEMS)
    assert [one["state"] for one in found] == ["met", "MISSED", "met"]


def test_candidates_of_few_rows_have_no_library_product() -> None:
    setting = Setting(shape=shape(2, (32, 64)), device=torch.device("cpu"), compiled=False)
    names = [one.name for one in candidates.candidates(setting) + peers.peers(setting)]
    assert "_int_mm" not in names
    assert "dual" in names
