"""execution=kernel: images made by products of codes, and the record that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.records import Record, read_record
from tests.conftest import Answer

Segbench = Callable[..., Answer]
Small = Callable[..., list[str]]


def _record(out: Path) -> Record:
    (path,) = (out / "cells").glob("*/record.json")
    return read_record(path)


@pytest.mark.parametrize("bits", ["w8a8_int8", "w4a8_int"])
def test_kernels_on_the_cpu_make_the_images_of_the_simulation(
    segbench: Segbench, small: Small, tmp_path: Path, bits: str
) -> None:
    made = {}
    for execution in ("simulated", "kernel"):
        out = tmp_path / execution
        more = ("method=segquant_a", f"bits={bits}", f"execution={execution}", f"out={out}")
        answer = segbench("run", *small("tiny_mmdit", *more))
        assert answer.status == 0, answer.err
        made[execution] = _record(out)
    kernel, simulated = made["kernel"], made["simulated"]
    assert (kernel.execution, simulated.execution) == ("kernel", "simulated")
    said = kernel.execution_by_layer_class
    assert all(text.startswith("kernel (exact), ") for text in said.values())
    assert any("dual" in kind for kind in said)
    assert simulated.execution_by_layer_class == {"Linear": "simulated"}
    assert not any("kernels" in item for item in kernel.method_elements["left_out"])
    fraction = "linear_weights_quantized_fraction"
    assert kernel.protocol[fraction] == simulated.protocol[fraction] > 0
    a, b = kernel.metrics["step_error"].value, simulated.metrics["step_error"].value
    assert a == pytest.approx(b, rel=0.2)
    assert a > 0


def test_auto_simulates_what_has_no_kernel_and_prints_no_speed(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    more = ("method=rtn", "bits=w8a8_fp8", "execution=auto", f"out={tmp_path}")
    answer = segbench("run", *small("tiny_unet", *more))
    assert answer.status == 0, answer.err
    record = _record(tmp_path)
    assert record.execution == "simulated"
    assert any("no fp8 product on the cpu" in s for s in record.execution_by_layer_class.values())


def test_kernel_without_a_kernel_fails_and_says_which_layer(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    more = ("method=rtn", "bits=w8a8_fp8", "execution=kernel", f"out={tmp_path}")
    assert segbench("run", *small("tiny_unet", *more)).status == 1
    assert "use execution=auto" in _record(tmp_path).reason


def test_an_unknown_execution_is_refused(segbench: Segbench, small: Small, tmp_path: Path) -> None:
    answer = segbench("run", *small("tiny_unet", "execution=real", f"out={tmp_path}"))
    assert answer.status == 2
    assert "choose one of simulated, kernel, auto" in answer.err


def test_another_code_takes_dual_scales_place(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    """The paper's code judged by images: at equal products the high and low byte are finer."""
    records = {}
    for code in ("method", "high_low", "auto"):
        more = ("method=segquant_dual_only", "execution=kernel", f"activation_code={code}")
        answer = segbench("run", *small("tiny_mmdit", *more, f"out={tmp_path / code}"))
        assert answer.status == 0, answer.err
        records[code] = _record(tmp_path / code)
    kinds = {code: set(record.execution_by_layer_class) for code, record in records.items()}
    assert "w8 int8 dual static" in kinds["method"]
    assert "w8 int8 high_low static" in kinds["high_low"]
    assert not any("dual" in kind for kind in kinds["high_low"])
    assert kinds["auto"] - kinds["method"]
    extra = "extra_products_of_codes"
    paid = records["method"].extra_macs_fraction
    assert records["high_low"].protocol[extra] == pytest.approx(paid)
    assert records["high_low"].settings["activation_code"] == "high_low"
    errors = {code: record.metrics["step_error"].value for code, record in records.items()}
    assert len(set(errors.values())) == 3


def test_a_code_without_kernels_is_refused(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    answer = segbench("run", *small("tiny_unet", "activation_code=auto", f"out={tmp_path}"))
    assert answer.status == 2
    assert "set execution=kernel" in answer.err


def test_fused_activations_give_the_same_images_and_are_told(
    segbench: Segbench, small: Small, tmp_path: Path
) -> None:
    records = {}
    for fused in ("false", "true"):
        more = ("method=rtn", "execution=kernel", f"fuse_activations={fused}")
        answer = segbench("run", *small("tiny_mmdit", *more, f"out={tmp_path / fused}"))
        assert answer.status == 0, answer.err
        records[fused] = _record(tmp_path / fused)
    told = records["true"].protocol["fused_activations"]
    assert "gelu_tanh in the product before" in told
    assert "silu in the codes" in told
    assert "fused_activations" not in records["false"].protocol
    assert records["true"].settings["fuse_activations"] is True
    assert records["true"].metrics["psnr"] == records["false"].metrics["psnr"]
    refused = segbench("run", *small("tiny_mmdit", "fuse_activations=true", f"out={tmp_path}"))
    assert refused.status == 2
    assert "set execution=kernel" in refused.err
    wrong = segbench("run", *small("tiny_mmdit", "fuse_activations=maybe", f"out={tmp_path}"))
    assert wrong.status == 2
    assert "neither true nor false" in wrong.err
