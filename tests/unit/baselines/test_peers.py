"""Library peers: skipped with a reason where absent, near rounding to nearest where not."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch

from baselines.peer import is_int8_weight_only
from baselines.rtn import RoundToNearest
from experiments.config import build, compose_config, options
from segquant.core import Bits
from tests.unit.core.helpers import calibrate, correlated, one, power_ratio

PEERS = [name for name in options("method") if name.startswith("peer_")]


def config(peer: str, bits_name: str) -> Any:
    return build(compose_config([f"method={peer}", f"bits={bits_name}"]), method_name=peer)


def some_bits(peer: str) -> list[Bits]:
    """The bits that a peer has, installed or not."""
    every = [config(peer, name) for name in options("bits")]
    return [
        c.bits for c in every if "through the interface" not in str(c.method.unsupported(c.bits))
    ]


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_has_some_bits_and_says_what_else_it_lacks(peer: str) -> None:
    assert some_bits(peer)
    method = config(peer, "w4a4_nvfp4").method
    assert "use w8a" in method.unsupported(config(peer, "w4a4_nvfp4").bits)


@pytest.mark.parametrize("peer", PEERS)
def test_an_absent_library_is_a_reason_with_the_command(
    peer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.peer.find_spec", lambda name: None)
    found = config(peer, "w8a16_int")
    how = some_bits(peer)[0]
    assert "pip install 'segquant-bench[" in found.method.unsupported(how)


@pytest.mark.parametrize("peer", PEERS)
def test_no_library_is_imported_before_it_is_chosen(peer: str) -> None:
    module = import_module(f"baselines.{peer}")
    assert not {"torchao", "optimum", "bitsandbytes", "sdnq"} & set(vars(module))


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_near_rounding_to_nearest_at_the_same_bits(peer: str) -> None:
    method = config(peer, "w8a16_int").method
    for how in some_bits(peer):
        if (reason := method.unsupported(how)) is not None:
            pytest.skip(reason)
        model, x = one(64, 32), correlated(48, 64, seed=0)
        calibration = calibrate(model, [x])
        made, plain = copy.deepcopy(model), copy.deepcopy(model)
        report = method.quantize(made, calibration=calibration, bits=how)
        RoundToNearest().quantize(plain, calibration=calibration, bits=how)
        with torch.no_grad():
            error, nearest = (power_ratio(m(x), model(x)) for m in (made, plain))
        assert 0 < error < (1.5 if is_int8_weight_only(how) else 3) * nearest
        assert report.execution == "library"
        assert [entry["name"] for entry in report.layers_quantized] == ["linear"]
        assert report.effective_bits_per_weight == 8 + 32 / 64
