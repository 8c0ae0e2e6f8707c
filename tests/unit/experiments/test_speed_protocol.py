"""The speed protocol: warm-ups, repeats, deciles, random order, baselines, and what is n/a."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from evaluation import gpu_state as gpu
from experiments.speed.against_unquantized import best_unquantized, with_ratios
from experiments.speed.cell_speed_tables import cells_csv, cells_markdown
from experiments.speed.compiling import uncompile, why_not_compiled
from experiments.speed.energy import energy_counter, measure_energy
from experiments.speed.latency import LEAST_REPEATS, deciles, measure_latency
from experiments.speed.machine_state import machine_state, state_text, why_not_calm
from experiments.speed.session import in_random_order
from experiments.speed.time_cells import tensor_bytes

CPU = torch.device("cpu")


def test_warmups_are_not_measured_and_repeats_are_counted() -> None:
    calls: list[int] = []
    found = measure_latency(lambda: calls.append(1), device=CPU, warmups=3, repeats=7)
    assert (len(calls), found.repeats, found.warmups) == (10, 7, 3)
    assert found.p10_seconds <= found.median_seconds <= found.p90_seconds


def test_time_that_is_up_leaves_a_few_repeats() -> None:
    found = measure_latency(lambda: None, device=CPU, warmups=0, repeats=99, budget_seconds=0)
    assert found.repeats == LEAST_REPEATS


def test_deciles_lie_between_the_values() -> None:
    assert deciles([float(n) for n in range(101)]) == (10.0, 90.0)
    assert deciles([2.0]) == (2.0, 2.0)


def test_the_order_is_random_and_the_same_at_every_call() -> None:
    items = list(range(20))
    assert in_random_order(items, seed=1) == in_random_order(items, seed=1)
    assert in_random_order(items, seed=1) != in_random_order(items, seed=2)
    assert sorted(in_random_order(items)) == items
    assert in_random_order(items) != items


def test_a_cpu_has_no_energy_and_says_so() -> None:
    counter = energy_counter(CPU)
    found = measure_energy(lambda: None, images=1, device=CPU, counter=counter)
    assert (found.joules_per_image, found.note) == (None, "no NVML on a CPU")


def test_energy_is_the_counters_difference_over_the_images() -> None:
    readings = iter((100.0, 130.0))
    found = measure_energy(
        lambda: None, images=4, device=CPU, counter=lambda: next(readings), seconds=0
    )
    assert found.joules_per_image == 7.5
    assert found.note.startswith("4 images in")


def test_nvml_that_is_missing_or_refuses_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(energy_counter(card))

    def refuses(*_: Any) -> None:
        raise RuntimeError("Not Supported")

    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda _: 1,
        nvmlDeviceGetTotalEnergyConsumption=refuses,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = types.SimpleNamespace(uuid="u")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert energy_counter(card) == "NVML does not tell: Not Supported"
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda _: 2500
    counter = energy_counter(card)
    assert not isinstance(counter, str)
    assert counter() == 2.5


def test_why_a_gpu_is_slow_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.slow_reasons("0x0000000000000000") == []
    assert gpu.slow_reasons("0x0000000000000044") == [
        "software power cap",
        "hardware thermal slowdown",
    ]
    assert gpu.slow_reasons("0x1000") == ["0x1000"]
    assert gpu.slow_reasons("[N/A]") is None
    answers = {
        ",".join(gpu.KEYS): "575.1, 1980 MHz, 1980 MHz, 2619 MHz, 300 W, 60",
        "clocks_throttle_reasons.active": "0x0000000000000004",  # an older driver's name
    }
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        asked.append(command)
        text = answers.get(command[1].partition("=")[2])
        if text is None:
            raise OSError("Field is not a valid field to query")
        return types.SimpleNamespace(stdout=f"{text}\n")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    state = gpu.gpu_state("GPU-u")
    assert state["clocks.sm"] == "1980 MHz"
    assert state["driver_version"] == "575.1"
    assert state["slowed_by"] == ["software power cap"]
    assert all("--id=GPU-u" in command for command in asked)
    calm = {"load": 0.0, "gpu": {}}
    assert why_not_calm(calm, {"load": 5.0, "gpu": state}) == [
        "the GPU was slowed by software power cap after"
    ]
    assert "slowed by software power cap" in state_text(calm | {"cpu_hertz": 1e9, "gpu": state})


def test_a_busy_machine_is_said_by_what_was_there_before() -> None:
    state = machine_state(CPU)
    assert set(state) == {"utc", "load", "cpu_hertz", "gpu"}
    calm, busy = {"load": 0.1, "gpu": {}}, {"load": 3.0, "gpu": {}}
    assert why_not_calm(calm, busy) == []
    assert why_not_calm(busy, calm) == ["the load was 3.00 before it began"]


def test_compiling_without_a_compiler_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "needs a C++ compiler" in why_not_compiled(CPU)
    assert why_not_compiled(torch.device("cuda")) == ""
    monkeypatch.setenv("CXX", "cc")
    assert why_not_compiled(CPU) == ""


def test_what_was_compiled_is_eager_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].compile(backend="eager")
    model.compile(backend="eager")
    uncompile(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_bytes_on_a_device_count_scales_and_a_tied_weight_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("scale", torch.zeros(3))
    assert tensor_bytes(model) == 4 * 16 + 4 * 3


def timed(method: str, mode: str, step: float, batch: int = 1, **more: Any) -> dict[str, Any]:
    times = {
        "median_seconds": step, "p10_seconds": step, "p90_seconds": 2 * step,
        "repeats": 50, "warmups": 10,
    }  # fmt: skip
    bits = "w16a16" if method == "fp" else "w8a8_int8"
    return {
        "model": "m", "method": method, "bits": bits, "mode": mode, "batch": batch,
        "status": "ok", "dtype": "bfloat16", "execution": "kernel", "step": times,
        "image": {**times, "median_seconds": 10 * step}, "note": "no NVML on a CPU", "order": 0,
    } | more  # fmt: skip


SIMULATED = {
    "model": "m", "method": "gptq", "bits": "w4a4_int", "dtype": "bfloat16", "order": 1,
    "status": "simulated", "reason": "simulated: multiplies floats", "execution": "simulated",
    "theoretical_bytes": 3e6,
}  # fmt: skip


def test_rows_are_held_against_the_faster_of_eager_and_compiled() -> None:
    """A quantized eager model against an eager one is unfair as long as compiled is faster."""
    rows = [
        timed("fp", "eager", 4.0), timed("fp", "compiled", 2.0), timed("rtn", "eager", 2.5),
        timed("rtn", "compiled", 1.0), timed("fp", "eager", 1.0, batch=4), SIMULATED,
        {**timed("fp", "compiled", 0.1), "status": "failed"},
    ]  # fmt: skip
    best = best_unquantized(rows, what="step", batch=1)
    assert best is rows[1]
    found = with_ratios(rows)
    assert [row.get("step_ratio") for row in found] == [0.5, 1.0, 0.8, 2.0, 1.0, None, None]
    assert found[2]["step_baseline"] == "fp compiled, bfloat16"
    assert with_ratios([timed("rtn", "eager", 1.0)])[0].get("step_ratio") is None


def made_result(rows: list[dict[str, Any]]) -> dict[str, Any]:
    state = {"utc": "t", "load": 2.5, "cpu_hertz": 2e9, "gpu": {}}
    return {
        "command": "segbench bench-model x", "started_utc": "t", "device_kind": "cpu",
        "environment": {"packages": {"torch": "2"}, "cpu": "C", "device": "cpu", "git": None},
        "num_threads": 1, "machine_before": state, "machine_after": state,
        "not_calm": why_not_calm(state, state), "order_seed": 0, "rows": with_ratios(rows),
    }  # fmt: skip


def test_a_simulated_row_prints_no_time_and_a_busy_machine_is_said() -> None:
    rows = [timed("fp", "eager", 0.004), timed("rtn", "compiled", 0.002), SIMULATED]
    text = cells_markdown(made_result(rows))
    (line,) = [row for row in text.splitlines() if row.startswith("| m ") and "gptq" in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[5:16] == ["n/a"] * 11
    assert cells[16] == "3"
    assert "Not a calm machine: the load was 2.50 before it began" in text
    assert "This is no GPU" in text
    assert "gptq w4a4_int: simulated, simulated: multiplies floats" in text
    assert "batch 1: step by fp eager, bfloat16" in text
    assert "4 [4, 8] (50)" in text


def test_the_csv_holds_what_the_table_shows() -> None:
    rows = [timed("fp", "eager", 0.004), SIMULATED]
    read = list(csv.DictReader(io.StringIO(cells_csv(made_result(rows)))))
    assert read[0]["step_p90_seconds"] == "0.008"
    assert read[0]["load_before"] == "2.5"
    assert (read[1]["status"], read[1]["step_median_seconds"]) == ("simulated", "")
