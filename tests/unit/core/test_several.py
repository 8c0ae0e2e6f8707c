"""Several denoisers in one container: each is seen, stored, run again and saved as if alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import Gptq
from baselines.rtn import RoundToNearest
from baselines.tfmq_fsc import TfmqFsc
from segquant.core.argument_trees import flatten_tree, unflatten_tree
from segquant.core.calibration import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.input_statistics import LayerStatistics, StatisticsRecorder
from segquant.core.linear import QuantLinear
from segquant.core.predictions import said_by
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.sequential import Sequential, block_of_layers, calls_of_one_forward
from segquant.core.several import PART, Denoisers, called_parts, part_of_call, together
from segquant.core.stepwise import StepRecorder, follow_steps
from tests.unit.core.helpers import bits, generator


class Part(nn.Module):
    """A denoiser of two Linears that is told its step."""

    def __init__(self, width: int, *, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor, timestep: float, more: Any = None) -> tuple[Tensor]:
        x = self.second(torch.tanh(self.first(x) * timestep))
        return (x if more is None else x + sum(more),)


def parts() -> dict[str, nn.Module]:
    return {"transformer": Part(4, seed=0), "transformer_2": Part(6, seed=1)}


def run(modules: dict[str, nn.Module]) -> None:
    """As a pipeline does: it calls its own modules, by position and by name."""
    first, second = modules.values()
    for step in (3.0, 2.0, 1.0):
        first(torch.randn(5, 4, generator=generator(int(step))), step)
    for step in (0.75, 0.5):
        second(x=torch.randn(5, 6, generator=generator(int(step * 100))), timestep=step)


def equal(a: LayerStatistics, b: LayerStatistics) -> bool:
    assert a.gram_II is not None
    assert b.gram_II is not None
    alike = (a.rows, a.calls) == (b.rows, b.calls)
    pairs = [(a.low_I, b.low_I), (a.high_I, b.high_I), (a.sample_TI, b.sample_TI)]
    return alike and all(torch.equal(x, y) for x, y in [*pairs, (a.gram_II, b.gram_II)])


def test_one_denoiser_is_no_container() -> None:
    part = Part(4, seed=0)
    assert together({"transformer": part}) is part
    assert called_parts(part) == {"": part}
    assert part_of_call(part, {"x": 1}) is part


def test_the_container_holds_the_modules_themselves() -> None:
    modules = parts()
    whole = together(modules)
    assert isinstance(whole, Denoisers)
    assert called_parts(whole) == modules
    assert "transformer_2.first" in dict(whole.named_modules())
    x = torch.randn(2, 6, generator=generator(0))
    assert torch.equal(
        whole(denoiser="transformer_2", x=x, timestep=2.0)[0], modules["transformer_2"](x, 2.0)[0]
    )
    copied = copy.deepcopy(whole)
    assert list(called_parts(copied)) == list(modules)
    assert called_parts(copied)["transformer"] is not modules["transformer"]


def test_statistics_are_those_of_each_alone() -> None:
    modules = parts()
    whole = together(modules)
    with StatisticsRecorder(whole, gram=True) as recorder:
        run(modules)
    assert recorder.forwards == 5
    found = recorder.statistics()
    assert list(found) == [f"{name}.{layer}" for name in modules for layer in ("first", "second")]
    for name, module in modules.items():
        with StatisticsRecorder(module, gram=True) as alone:
            run(modules)
        for layer, seen in alone.statistics().items():
            assert equal(found[f"{name}.{layer}"], seen)


def test_each_has_its_own_steps() -> None:
    modules = parts()
    with StepRecorder(together(modules)) as recorder:
        run(modules)
    steps = {name: layer.timesteps for name, layer in recorder.statistics().items()}
    assert steps["transformer.second"] == (3.0, 2.0, 1.0)
    assert steps["transformer_2.first"] == (0.75, 0.5)


def _stepped() -> tuple[Denoisers, dict[str, nn.Module]]:
    """Both quantized with scales per step, whatever the graph says of them."""
    modules = parts()
    whole = together(modules)
    assert isinstance(whole, Denoisers)
    with StepRecorder(whole) as steps, StatisticsRecorder(whole, gram=False) as recorder:
        run(modules)
    graph = {name: _Conditioned() for name in recorder.statistics()}
    calibration = Calibration(
        statistics=recorder.statistics(), forwards=5, graph=graph, steps=steps.statistics()
    )
    TfmqFsc().quantize(whole, calibration=calibration, bits=bits())
    return whole, modules


class _Conditioned:
    conditioning = "modulation"


def test_a_layer_follows_the_steps_of_its_own_denoiser() -> None:
    whole, modules = _stepped()
    follow_steps(whole)  # nothing the second time
    for name, step, number in (("transformer", 1.0, 2), ("transformer_2", 0.75, 0)):
        layers = [m for m in modules[name].modules() if isinstance(m, QuantLinear)]
        others = [m for m in whole.modules() if isinstance(m, QuantLinear) and m not in layers]
        for layer in [*layers, *others]:
            layer.step = torch.tensor(7)
        width = modules[name].get_submodule("first").in_features
        modules[name](torch.zeros(1, width), step)
        assert {int(layer.step) for layer in layers} == {number}
        assert {int(layer.step) for layer in others} == {7}
        assert len(modules[name]._forward_pre_hooks) == 1
    assert not whole._forward_pre_hooks


def test_a_checkpoint_of_several(tmp_path: Path) -> None:
    whole, modules = _stepped()
    report = RoundToNearest().quantize(
        together(parts()), calibration=Calibration(statistics={}, forwards=0), bits=bits(16, 16)
    )
    save_quantized(whole, tmp_path / "saved", report)
    loaded, _ = load_quantized(together(parts()), tmp_path / "saved")
    for name, step in (("transformer", 2.0), ("transformer_2", 0.5)):
        width = modules[name].get_submodule("first").in_features
        x = torch.randn(3, width, generator=generator(9))
        said = loaded(denoiser=name, x=x, timestep=step)[0]
        assert torch.equal(said, modules[name](x, step)[0])


def test_a_stored_call_says_whose_it_is(tmp_path: Path) -> None:
    modules = parts()
    whole = together(modules)
    with CallRecorder(whole, tmp_path, cap_bytes=10**6):
        run(modules)
    calls = CapturedCalls.load(tmp_path).calls
    assert [call.part for call in calls] == ["transformer"] * 3 + ["transformer_2"] * 2
    assert [call.timestep for call in calls] == [3.0, 2.0, 1.0, 0.75, 0.5]
    arguments = CapturedCalls.load(tmp_path).arguments(calls[-1], device="cpu")
    assert arguments[PART] == "transformer_2"
    own = {name: value for name, value in arguments.items() if name != PART}
    assert torch.equal(whole(**arguments)[0], modules["transformer_2"](**own)[0])
    with CallRecorder(modules["transformer"], tmp_path / "one", cap_bytes=10**6):
        run(modules)
    alone = CapturedCalls.load(tmp_path / "one").calls
    assert [call.part for call in alone] == [""] * 3
    assert all(PART not in call.arguments["dict"] for call in alone)


def _replay(modules: dict[str, nn.Module]) -> Callable[..., None]:
    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        run(called_parts(denoiser))

    return replay


def test_in_sequence_every_denoiser_has_stages_of_its_own() -> None:
    modules = parts()
    whole = together(modules)
    assert set(block_of_layers(whole).values()) == {"transformer", "transformer_2"}
    assert set(block_of_layers(modules["transformer"]).values()) == {""}
    with StatisticsRecorder(whole, gram=True) as recorder:
        run(modules)
    calibration = Calibration(statistics=recorder.statistics(), forwards=5, replay=_replay(modules))
    once, forwards = calls_of_one_forward(whole, calibration=calibration)
    assert list(once) == list(recorder.statistics())
    assert forwards == 5  # this replay runs them all
    method = Gptq(sequential=Sequential.blocks)
    report = method.quantize(whole, calibration=calibration, bits=bits())
    assert report.replay_forwards == 5 + 5  # one for the order, one before the second stage
    assert any("other denoisers" in item for item in report.left_out)


class TwoControlNet(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return [x, x + 1], x + 2


class UNetControlNetXSModel(TwoControlNet):
    """Of that name in diffusers: a UNet with a ControlNet inside."""


def test_all_residuals_of_a_controlnet_count() -> None:
    x = torch.zeros(2, 3)
    said = said_by(TwoControlNet(), TwoControlNet()(x))
    assert [float(tensor.mean()) for tensor in said] == [0, 1, 2]
    assert len(said_by(TwoControlNet(), {0: x, 2: (x, None)})) == 2
    assert len(said_by(UNetControlNetXSModel(), ([x, x], x))) == 1
    (one,) = said_by(Part(4, seed=0), (x, [x, x]))
    assert one is x


def test_a_dict_by_numbers_comes_back_as_it_was() -> None:
    """Z-Image's ControlNet gives its residuals by the number of the layer."""
    held: dict[str, Tensor] = {}

    def put(tensor: Tensor, path: str) -> str:
        held[path] = tensor
        return path

    given = {"samples": {0: torch.ones(1), 4: [torch.zeros(2)]}, "plain": {"a": None}}
    tree = flatten_tree(given, put)
    assert list(held) == ["samples.0", "samples.4.0"]
    back = unflatten_tree(tree, held.__getitem__)
    assert list(back["samples"]) == [0, 4]
    assert back["samples"][4][0] is held["samples.4.0"]
    assert back["plain"] == {"a": None}
    with pytest.raises(ValueError, match="dict"):
        flatten_tree({"samples": {(0, 1): 1}}, put)
