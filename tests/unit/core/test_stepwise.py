"""Statistics per step, stored calls, and transformed inputs."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import nn

from baselines.adaround import AdaRound
from baselines.ptq4dm import Ptq4Dm
from baselines.qdiffusion import QDiffusion
from segquant.core import LayerRecipe, quantize_layers
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.layer import quantize_linear
from segquant.core.layer_plan import LayerPlan, quantize_planned
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.segments import whole
from segquant.core.stepwise import StepRecorder, load_steps, save_steps
from segquant.core.timesteps import timestep_name
from segquant.core.transforms import InputTransform, hadamard, hadamard_blocks, rotation_block
from tests.unit.baselines.timed import TIMESTEPS, Timed, calibrated, calls
from tests.unit.core.helpers import bits, calibrate, correlated, generator, one, power_ratio


def test_steps_hold_each_steps_own_extremes(tmp_path: Path) -> None:
    _model, calibration = calibrated(tmp_path / "calls")
    seen = calibration.steps["first"]
    assert seen.timesteps == TIMESTEPS
    for n, timestep in enumerate(TIMESTEPS):
        rows = torch.cat([x * (0.2 + t / 1000) for x, t in calls() if float(t) == timestep])
        torch.testing.assert_close(seen.low_SI[n], rows.amin(0))
        torch.testing.assert_close(seen.high_SI[n], rows.amax(0))
        assert all((rows == row).all(1).any() for row in seen.sample_SKI[n])
    whole_range = calibration.statistics["first"]
    torch.testing.assert_close(seen.high_SI.amax(0), whole_range.high_I)
    save_steps(calibration.steps, tmp_path / "steps")
    again = load_steps(tmp_path / "steps")
    assert again["first"].timesteps == seen.timesteps
    assert torch.equal(again["first"].sample_SKI, seen.sample_SKI)


def test_one_call_has_one_timestep() -> None:
    model = Timed()
    with StepRecorder(model), pytest.raises(ValueError, match="same timestep"):
        model(torch.ones(2, 16), torch.tensor([1.0, 2.0])[:, None])
    with (
        StepRecorder(one(4, 4)) as recorder,
        pytest.raises(ValueError, match="with x: none of them is a timestep"),
    ):
        recorder._denoiser(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("passed", "told"),
    [
        (("hidden_states", "timestep", "timestep_cond"), "timestep"),
        (("hidden_states", "timesteps"), "timesteps"),
        (("x", "t", "cap_feats"), "t"),
        (("vision_tokens", "vision_timesteps"), "vision_timesteps"),
        (("text", "sample"), None),
    ],
)
def test_the_step_is_told_by_what_is_passed(passed: tuple[str, ...], told: str | None) -> None:
    assert timestep_name(passed) == told


class CalledT(nn.Module):
    """Its timestep has another name, and may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None) -> torch.Tensor:
        return self.linear(x)


def test_a_method_that_does_not_use_the_step_asks_for_none(tmp_path: Path) -> None:
    model, x = CalledT(), torch.ones(2, 4)
    with torch.no_grad(), StepRecorder(model) as steps:
        for time in (0.9, 0.4):
            model(x, t=torch.tensor([time, time]))
    assert steps.statistics()["linear"].timesteps == pytest.approx((0.9, 0.4))
    with torch.no_grad(), CallRecorder(model, tmp_path, cap_bytes=10**6):
        model(x)
        model(x, torch.tensor(0.5))
    kept = CapturedCalls.load(tmp_path).calls
    assert [call.timestep for call in kept] == [None, 0.5]
    draw = {"generator": torch.Generator().manual_seed(0)}
    assert len(AdaRound(calls=2).draw(kept, **draw)) == 2
    for method in (QDiffusion(), Ptq4Dm()):
        with pytest.raises(ValueError, match="has no timestep"):
            method.draw(kept, **draw)


def test_calls_come_back_and_stay_under_the_cap(tmp_path: Path) -> None:
    model, calibration = calibrated(tmp_path / "all")
    captured = calibration.captured
    assert [call.timestep for call in captured.calls] == [float(t) for _, t in calls()]
    given = captured.arguments(captured.calls[3], device="cpu")
    assert torch.equal(given["x"], calls()[3][0])
    size = captured.calls[0].stored_bytes
    few = CallRecorder(model, tmp_path / "few", cap_bytes=3 * size)
    with torch.no_grad(), few:
        for x, timestep in calls():
            model(x, timestep)
    loaded = CapturedCalls.load(tmp_path / "few")
    stored = sum(f.stat().st_size for f in (tmp_path / "few").glob("*.safetensors"))
    assert len(loaded.calls) == 3
    assert stored < 3 * size + 4096
    # A method with a smaller cap than the sweep's takes what it would have had alone.
    assert captured.within(3 * size).calls == loaded.calls


def test_a_tensor_that_does_not_change_is_stored_once(tmp_path: Path) -> None:
    model = Timed()
    x = torch.ones(8, 16)
    with torch.no_grad(), CallRecorder(model, tmp_path, cap_bytes=10**6):
        for timestep in TIMESTEPS:
            model(x, torch.tensor(timestep))
    sizes = [call.stored_bytes for call in CapturedCalls.load(tmp_path).calls]
    assert sizes == [x.nbytes + 4, 4, 4, 4]


def test_hadamard_is_scipys_and_its_blocks_fit() -> None:
    for size in (1, 2, 8, 64):
        expected = torch.from_numpy(scipy_hadamard(size).astype("float32")) / size**0.5
        torch.testing.assert_close(hadamard(size), expected)
    assert [rotation_block(n, largest=256) for n in (160, 3072, 96, 7, 6)] == [32, 256, 32, 0, 0]
    blocks = hadamard_blocks(160, block_size=32, generator=generator(0))
    eye = torch.eye(32).expand(5, 32, 32)
    torch.testing.assert_close(blocks @ blocks.mT, eye, atol=1e-6, rtol=0)


def transform(features: int) -> InputTransform:
    return InputTransform(
        shift_I=torch.linspace(0.1, 0.4, features),
        scale_I=torch.logspace(-1, 1, features),
        permutation_I=torch.randperm(features, generator=generator(2)).int(),
        rotation_NBB=hadamard_blocks(features, block_size=8, generator=generator(1)),
        hadamard=True,
    )


def test_a_transform_changes_nothing_in_float_and_survives_a_checkpoint(tmp_path: Path) -> None:
    """With weights and inputs in many bits the layer is the float one, whatever was done to it."""
    model, x = one(32, 24), correlated(128, 32, seed=0)
    calibration = calibrate(model, [x], rows=128)
    fine = bits(8, 16, fine=True)
    fine.weight = replace(fine.weight, num_bits=16, number_format="int16")
    quantized = copy.deepcopy(model)
    plan = LayerPlan(transform=transform(32))
    report = quantize_layers(
        quantized,
        calibration=calibration,
        bits=fine,
        recipe=LayerRecipe(),
        plan_of=lambda name, linear: plan,
    )
    with torch.no_grad():
        assert power_ratio(quantized(x), model(x)) < 1e-6
        assert power_ratio(quantized.linear.weight, model.linear.weight) < 1e-6
    assert report.layers_quantized[0]["relative_error"] < 1e-6
    save_quantized(quantized, tmp_path / "saved", report)
    loaded, _ = load_quantized(one(32, 24, seed=9), tmp_path / "saved")
    assert torch.equal(loaded(x), quantized(x))


def test_statistics_of_a_transformed_input() -> None:
    x = correlated(200, 32, seed=3)
    seen = calibrate(one(32, 4), [x], rows=200).statistics["linear"]
    scaled = InputTransform(scale_I=torch.logspace(-1, 1, 32))
    moved = scaled.of_input(x)
    found = scaled.of_statistics(seen)
    torch.testing.assert_close(found.low_I, moved.amin(0))
    torch.testing.assert_close(found.gram_II, moved.T @ moved, rtol=1e-4, atol=1e-3)
    turned = replace(transform(32), shift_I=None)
    moved = turned.of_input(x)
    torch.testing.assert_close(
        turned.of_statistics(seen).gram_II, moved.T @ moved, rtol=1e-4, atol=1e-2
    )
    assert transform(32).of_statistics(seen).gram_II is None


def test_an_empty_plan_is_the_plain_layer() -> None:
    model, x = one(16, 8), correlated(64, 16, seed=0)
    calibration = calibrate(model, [x])
    given = {
        "name": "linear",
        "seen": calibration.statistics["linear"],
        "shape": whole(in_features=16, out_features=8),
        "bits": bits(4, 8, fine=True),
        "recipe": LayerRecipe(),
    }
    plain, _ = quantize_linear(model.linear, **given)
    planned, _ = quantize_planned(model.linear, plan=LayerPlan(), **given)
    assert torch.equal(plain(x), planned(x))


def test_scales_follow_the_step_and_a_checkpoint_keeps_them(tmp_path: Path) -> None:
    model, calibration = calibrated(tmp_path / "calls")
    how = bits(8, 4)
    quantized = copy.deepcopy(model)
    report = quantize_layers(
        quantized,
        calibration=calibration,
        bits=how,
        recipe=LayerRecipe(),
        plan_of=lambda name, linear: LayerPlan(steps=calibration.steps[name]),
    )
    save_quantized(quantized, tmp_path / "saved", report)
    loaded, _ = load_quantized(Timed(seed=5), tmp_path / "saved")
    for n, (x, timestep) in enumerate(calls()[: len(TIMESTEPS)]):
        with torch.no_grad():
            out = quantized(x, timestep)[0]
            assert torch.equal(loaded(x, timestep)[0], out)
            # A timestep that was never calibrated belongs to the nearest one.
            quantized(x, timestep + 1)
        assert quantized.first.step == n
        top = calibration.steps["first"].amax[n].amax()
        assert float(quantized.first.activation_scale[n]) == pytest.approx(float(top) / 7)
