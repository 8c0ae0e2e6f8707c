"""Which way a product goes, and that it is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segquant.kernels import ActivationCode, Device, PackedLinear, Way, choice, choose, pack_dense
from segquant.kernels.choice import TABLE
from tests.unit.kernels.cases import inputs, layer

CODE = ActivationCode
CPU = Device(kind="cpu")


def gpu(major: int, minor: int, *, triton: bool = True) -> Device:
    return Device(kind="cuda", capability=(major, minor), triton=triton)


def dual(**more: Any) -> PackedLinear:
    return layer(inputs("gelu", 4, 64), 32, codes=[CODE.dual], **more)


def fp8() -> PackedLinear:
    return pack_dense(torch.ones(32, 64), code=CODE.fp8, low=-1, high=1)


@pytest.mark.parametrize(
    ("packed", "rows", "device", "way"),
    [
        (dual(), 99, CPU, Way.exact),
        (dual(), 99, gpu(9, 0), Way.triton),
        (dual(), 16, gpu(9, 0), Way.triton_small),
        (dual(), 99, gpu(7, 5), Way.simulated),
        (dual(), 99, gpu(9, 0, triton=False), Way.int_mm),
        (dual(), 9, gpu(9, 0, triton=False), Way.simulated),
        (dual(), 99, Device(kind="mps"), Way.simulated),
        (dual(weight_bits=4), 99, gpu(8, 0), Way.triton_w4),
        (dual(rank=4), 2, gpu(8, 0), Way.triton),
        (fp8(), 99, gpu(8, 0), Way.simulated),
        (fp8(), 99, gpu(8, 9), Way.scaled_mm),
        (fp8(), 99, CPU, Way.simulated),
    ],
)
def test_the_way_of_a_layer(packed: PackedLinear, rows: int, device: Device, way: Way) -> None:
    found = choose(packed, rows=rows, device=device)
    assert found.way is way
    assert found.reason
    assert found.way.execution == ("simulated" if way is Way.simulated else "kernel")


def test_a_device_with_little_int8_is_warned_of() -> None:
    assert "faster" in choose(dual(), rows=99, device=gpu(10, 3)).warning
    assert choose(dual(), rows=99, device=gpu(10, 0)).warning == ""


def test_measurements_overrule_and_a_slower_layer_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"rows": 100, "way": "int_mm", "ratio_to_bf16": 0.8}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"devices": {"sm_90": {"32x64": [entry]}}}))
    monkeypatch.setattr(choice, "TABLE", path)
    choice._table.cache_clear()
    found = choose(dual(), rows=99, device=gpu(9, 0))
    assert found.way is Way.int_mm
    assert found.reason == "measured"
    assert "16 bit is faster here, 1.25 times" in found.warning
    assert choose(dual(), rows=999, device=gpu(9, 0)).way is Way.triton
    assert choose(dual(), rows=99, device=gpu(8, 0)).warning == ""
    monkeypatch.undo()
    choice._table.cache_clear()


def test_the_committed_table_names_known_ways() -> None:
    for shapes in json.loads(TABLE.read_text())["devices"].values():
        for entries in shapes.values():
            for entry in entries:
                assert entry["way"] in Way.__members__
                assert entry["rows"] > 0
                assert entry["ratio_to_bf16"] > 0
