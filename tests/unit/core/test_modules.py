"""QuantLinear as any other module: offload hooks, copies, types, compiled and moved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn

from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import EXACT_BUFFERS, QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.schemes import Bits
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from tests.unit.core.helpers import bits, calibrate, correlated

X = correlated(64, 32, seed=0, spread=1.0)
ALL = LayerRecipe(
    smoothing=SmoothingSettings(mode=SmoothingMode.search),
    rounding=Rounding.gptq,
    low_rank=LowRankSettings(rank=4),
)
HOW = {"w8a8": bits(8, 8), "w4a8": bits(4, 8, fine=True), "w4a8 asymmetric": bits(4, 8)}
HOW["w4a8 asymmetric"] = bits(4, 8, symmetric=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(32, 48), nn.Linear(48, 32)
        self.kept = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(self.b(torch.relu(self.a(x))))


@pytest.fixture(params=sorted(HOW))
def net(request: pytest.FixtureRequest) -> Net:
    how: Bits = replace(HOW[request.param], keep=["kept"])
    model = Net()
    quantize_layers(model, calibration=calibrate(model, [X]), bits=how, recipe=ALL)
    assert isinstance(model.a, QuantLinear)
    assert isinstance(model.b, QuantLinear)
    return model.eval()


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(X)
    return found


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("offload_buffers", [True, False])
def test_offload_hooks_move_its_tensors_and_change_nothing(
    net: Net, where: str, offload_buffers: bool, tmp_path: Path
) -> None:
    """The authors' layers hold plain attributes, which hooks do not see."""
    expected, state = output(net), {k: v.clone() for k, v in net.state_dict().items()}
    device = torch.device("cpu")
    if where == "cpu":
        cpu_offload(net, device, offload_buffers=offload_buffers)
    else:
        disk_offload(net, tmp_path, device, offload_buffers=offload_buffers)
    for _ in range(2):
        assert torch.equal(output(net), expected)
    away = {name for name in EXACT_BUFFERS if (t := getattr(net.a, name)) is not None and t.is_meta}
    held = {name for name in EXACT_BUFFERS if getattr(net.a, name) is not None}
    assert away == (held if offload_buffers else set())
    remove_hook_from_submodules(net)
    assert torch.equal(output(net), expected)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_dispatched_over_memory_and_disk(net: Net, tmp_path: Path) -> None:
    expected = output(net)
    places = {"a": "disk", "b": "cpu", "kept": "disk"}
    dispatch_model(
        net, places, main_device="cpu", offload_dir=tmp_path, offload_buffers=True, force_hooks=True
    )
    assert net.a.codes.is_meta
    assert not net.b.codes.is_meta
    for _ in range(2):
        assert torch.equal(output(net), expected)


def test_a_deep_copy_is_its_own(net: Net) -> None:
    expected, twin = output(net), copy.deepcopy(net)
    assert torch.equal(output(twin), expected)
    for value in twin.state_dict().values():
        value.zero_()
    twin.to(torch.float32)
    assert torch.equal(output(net), expected)
    assert not torch.equal(output(twin), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_and_back_keep_what_is_exact(net: Net, dtype: torch.dtype) -> None:
    half = copy.deepcopy(net).to(dtype)
    assert isinstance(half.a, QuantLinear)
    for name in EXACT_BUFFERS:
        before, after = getattr(net.a, name), getattr(half.a, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert after.dtype == before.dtype
            assert torch.equal(after, before)
    assert half.a.dense_OI.dtype == dtype
    with torch.no_grad():
        found = half(X.to(dtype)).float()
    torch.testing.assert_close(found, output(net), rtol=0.1, atol=0.1 * float(output(net).std()))


def test_a_compiled_net_is_the_same(net: Net) -> None:
    """One graph, no break, and again for another batch."""
    expected = output(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled(X[:7]), net(X[:7]), rtol=1e-5, atol=1e-5)
