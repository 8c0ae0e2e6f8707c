"""Composed: its switches against their equations in float64, alone and together."""

from typing import Any

import pytest
import torch
from scipy.linalg import hadamard

from baselines.composed import Composed, Rotation
from baselines.convrot import ConvRot
from baselines.gptq import Gptq
from baselines.quarot import QuaRot, layer_generator
from baselines.rtn import RoundToNearest
from segquant.core import Calibration, Rounding
from tests.unit.baselines.test_rotated_codes import (
    FEATURES,
    TOKEN,
    first_layer,
    outputs,
    quantized,
    setting,
    token_layer,
)
from tests.unit.baselines.timed import Timed
from tests.unit.core.helpers import bits


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Timed, Calibration]:
    return setting(tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize(
    ("switches", "published"),
    [
        ({}, RoundToNearest()),
        ({"rounding": Rounding.gptq}, Gptq()),
        ({"rotation": Rotation.hadamard, "seed": 3}, QuaRot(seed=3, rounding=Rounding.rtn)),
        ({"rotation": Rotation.regular}, ConvRot()),
        ({"rotation": Rotation.hadamard, "rounding": Rounding.gptq}, QuaRot()),
    ],
)
def test_a_switch_alone_is_the_row_that_it_is_taken_from(
    switches: dict[str, Any], published: Any, given: Any
) -> None:
    mine, _ = quantized(Composed(**switches), TOKEN, given)
    theirs, _ = quantized(published, TOKEN, given)
    assert torch.equal(outputs(mine), outputs(theirs))


def test_the_branch_carries_the_rotated_weights_largest_directions(given: Any) -> None:
    made, report = quantized(Composed(rotation=Rotation.hadamard, rank=2), TOKEN, given)
    found, x, bias = first_layer(made)
    w = given[0].first.weight.detach().double()
    generator = layer_generator("first", seed=0)
    signs = torch.randint(0, 2, (FEATURES,), generator=generator).double() * 2 - 1
    turn = signs[:, None] * torch.from_numpy(hadamard(FEATURES)).double() / FEATURES**0.5
    u, s, v = torch.linalg.svd(w @ turn)
    low = (u[:, :2] * s[:2]) @ v[:2]
    expected = x @ turn @ low.T + token_layer(x @ turn, w @ turn - low, top_x=7, top_w=7) + bias
    assert float((found - expected).abs().max() / expected.abs().max()) < 5e-3  # a 16-bit branch
    assert "low-rank branch in 16 bit, rank 2" in report.elements
    assert report.extra_macs_fraction > 0


def test_each_setting_reaches_the_computation(given: Any) -> None:
    base = {"rotation": Rotation.hadamard, "rank": 2, "rounding": Rounding.gptq}
    usual = outputs(quantized(Composed(**base), TOKEN, given)[0])
    changed: dict[str, Any] = {
        "rotation": Rotation.regular,
        "block_size": 4,
        "seed": 1,
        "rank": 3,
        "iterations": 4,
        "rounding": Rounding.rtn,
        "damping": 10.0,
    }
    for name, value in changed.items():
        made, _ = quantized(Composed(**{**base, name: value}), TOKEN, given)
        assert not torch.equal(outputs(made), usual), name


def test_what_it_cannot_do_is_refused() -> None:
    assert "rotation" in (Composed(rotation=Rotation.hadamard).unsupported(bits(8, 8)) or "")
    assert Composed(rank=4).unsupported(bits(8, 8)) is None
    with pytest.raises(ValueError, match="block_size=6"):
        Composed(block_size=6)
    with pytest.raises(ValueError, match="rank=-1"):
        Composed(rank=-1)
