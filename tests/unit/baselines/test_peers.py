"""Library peers: skipped with a reason where absent, near rounding to nearest where not."""

import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.peers.library import Int8WeightsOnly, is_int8_weight_only, split_layers
from baselines.peers.quanto import Quanto
from baselines.peers.sdnq import Sdnq
from baselines.rtn import RoundToNearest
from experiments.config.compose import build, compose_config
from experiments.config.places import options
from segquant.core import Bits, QuantizationReport
from tests.unit.baselines.timed import calibrated, calls
from tests.unit.core.helpers import correlated, power_ratio

PEERS = [name for name in options("method") if name.startswith("peer_")]


def config(peer: str, bits_name: str) -> Any:
    return build(compose_config([f"method={peer}", f"bits={bits_name}"]), method_name=peer)


def some_bits(peer: str) -> list[Bits]:
    """The bits that a peer has, installed or not."""
    every = [config(peer, name) for name in options("bits") if name != "w4a4_int_group64"]  # of 32
    return [
        c.bits for c in every if "through the interface" not in str(c.method.unsupported(c.bits))
    ]


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_has_some_bits_and_says_what_else_it_lacks(peer: str) -> None:
    assert some_bits(peer)
    lacking = ["mixed_w4w8a8"] if peer == "peer_auto_round" else ["mixed_w4w8a8", "w4a8_int"]
    for name in lacking:
        found = config(peer, name)
        assert "use w8a" in found.method.unsupported(found.bits)


@pytest.mark.parametrize("peer", PEERS)
def test_an_absent_library_is_a_reason_with_the_command(
    peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.peers.library.find_spec", lambda name: None)
    found = config(peer, "w8a16_int")
    how = some_bits(peer)[0]
    assert "pip install -e '.[" in found.method.unsupported(how)


@pytest.mark.parametrize("peer", PEERS)
def test_no_library_is_imported_before_it_is_chosen(peer: str) -> None:
    module = import_module(f"baselines.peers.{peer.removeprefix('peer_')}")
    libraries = {"torchao", "optimum", "bitsandbytes", "sdnq", "modelopt", "auto_round"}
    assert not libraries & set(vars(module))


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_near_rounding_to_nearest_at_the_same_bits(peer: str, tmp_path: Path) -> None:
    method = config(peer, "w8a16_int").method
    if peer == "peer_auto_round":
        method.iterations = 0  # to nearest
    model, calibration = calibrated(tmp_path, features=32)
    (x, timestep), *_ = calls(32)
    reasons = [method.unsupported(how) for how in some_bits(peer)]
    if None not in reasons:
        pytest.skip(reasons[0])
    for how in [one for one, reason in zip(some_bits(peer), reasons, strict=True) if not reason]:
        made, plain = copy.deepcopy(model), copy.deepcopy(model)
        report = method.quantize(made, calibration=calibration, bits=how)
        nearest_report = RoundToNearest().quantize(plain, calibration=calibration, bits=how)
        with torch.no_grad():
            exact = model(x, timestep)[0]
            error, nearest = (power_ratio(m(x, timestep)[0], exact) for m in (made, plain))
        # Far below it would be other bits than the row says.
        assert 0.5 * nearest < error < (1.5 if is_int8_weight_only(how) else 3) * nearest
        simulates = peer in ("peer_modelopt", "peer_auto_round")
        assert report.execution == ("library_simulated" if simulates else "library")
        assert names(report) == names(nearest_report) == ["first", "block.up", "block.down"]
        assert report.effective_bits_per_weight == nearest_report.effective_bits_per_weight
        assert report.weight_bytes == nearest_report.weight_bytes


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_keeps_what_every_method_keeps(peer: str, tmp_path: Path) -> None:
    method = config(peer, "w8a16_int").method
    how = next((one for one in some_bits(peer) if method.unsupported(one) is None), None)
    if how is None:
        pytest.skip("not installed")
    how = replace(how, keep=["first"])
    model, calibration = calibrated(tmp_path, features=32)
    made, plain, x = copy.deepcopy(model), copy.deepcopy(model), correlated(8, 32, seed=3)
    report = method.quantize(made, calibration=calibration, bits=how)
    nearest = RoundToNearest().quantize(plain, calibration=calibration, bits=how)
    assert (
        report.layers_kept
        == nearest.layers_kept
        == [{"name": "first", "reason": "bits.keep: first"}]
    )
    assert names(report) == names(nearest) == ["block.up", "block.down"]
    with torch.no_grad():
        assert torch.equal(made.first(x), model.first(x))
        assert not torch.equal(made.block(x), model.block(x))


@pytest.mark.parametrize("kind", [Quanto, Sdnq])
def test_what_two_rows_share_lets_the_library_replace_and_reports_it(
    kind: type[Int8WeightsOnly], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a stand-in for the library, so that it runs where none is installed."""
    monkeypatch.setattr("baselines.peers.library.find_spec", lambda name: name)
    model, calibration = calibrated(tmp_path, features=32)
    how = config("peer_quanto", "w8a16_int").bits
    seen: list[str] = []

    def stand_in(denoiser: Any, chosen: dict[str, Any], *, bits: Bits) -> None:
        seen.extend(chosen)
        RoundToNearest().quantize(denoiser, calibration=calibration, bits=bits)

    monkeypatch.setattr(kind, "replace_layers", staticmethod(stand_in))
    report = kind().quantize(model, calibration=calibration, bits=how)
    assert seen == names(report) == ["first", "block.up", "block.down"]
    assert report.execution == "library"
    assert kind.library in report.elements[0]
    assert report.left_out == list(kind.left_out)


def names(report: QuantizationReport) -> list[str]:
    return [entry["name"] for entry in report.layers_quantized]


def test_layers_kept_by_a_budget_are_kept_by_peers_too(tmp_path: Path) -> None:
    model, calibration = calibrated(tmp_path, features=32)
    how = replace(config("rtn", "w8a16_int").bits, keep_budget=10.5)
    _, kept = split_layers(model, calibration=calibration, bits=how)
    report = RoundToNearest().quantize(model, calibration=calibration, bits=how)
    assert kept == {one["name"]: one["reason"] for one in report.layers_kept}
    assert len(kept) == 1
