"""Block reconstruction: the soft rounding, what it finds, the draws of calls, and its settings."""

import copy
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.adaround import AdaRound
from baselines.budget import Budget
from baselines.ptq4dit import Ptq4Dit
from baselines.ptq4dm import Ptq4Dm
from baselines.qdiffusion import QDiffusion
from baselines.quarot import QuaRot
from baselines.reconstruction import Reconstruction, learn, ordered_blocks, output_loss
from baselines.rtn import RoundToNearest
from baselines.soft import (
    SoftLinear,
    annealed_beta,
    inverse_soft_bit,
    rounding_loss,
    soft_bit,
)
from baselines.spinquant import SpinQuant
from segquant.core import Calibration
from segquant.core.recorded_calls import Call
from segquant.core.schemes import Bits, NumberFormat, TensorScheme
from tests.unit.baselines.test_published import FEATURES, outputs, quantized
from tests.unit.baselines.timed import TIMESTEPS, Timed, calibrated
from tests.unit.core.helpers import bits, calibrate, correlated, generator, one, power_ratio

HOW, STATIC = bits(3, 8, fine=True), bits(4, 8)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Timed, Calibration]:
    model, calibration = calibrated(tmp_path_factory.mktemp("calls"), features=FEATURES)
    calibration.graph = {}
    return model, calibration


def test_soft_rounding_is_the_formula() -> None:
    v = torch.linspace(-6, 6, 25, dtype=torch.float64)
    h = soft_bit(v)
    for one_v, one_h in zip(v.tolist(), h.tolist(), strict=True):
        assert one_h == pytest.approx(min(max(1.2 / (1 + math.exp(-one_v)) - 0.1, 0), 1))
    part = torch.linspace(0, 0.99, 12, dtype=torch.float64)
    torch.testing.assert_close(soft_bit(inverse_soft_bit(part)), part)
    expected = sum(1 - abs(2 * one_h - 1) ** 5 for one_h in h.tolist())
    assert float(rounding_loss(v, beta=5.0)) == pytest.approx(expected)
    assert float(rounding_loss(torch.tensor([-9.0, 9.0]), beta=2.0)) == 0


def test_beta_falls_after_the_warm_up() -> None:
    how = {"warm_up": 0.2, "start": 20.0, "end": 2.0}
    assert annealed_beta(0.19, **how) is None
    assert annealed_beta(0.2, **how) == pytest.approx(20)
    assert annealed_beta(0.6, **how) == pytest.approx(11)
    assert annealed_beta(1.0, **how) == pytest.approx(2)


@pytest.mark.parametrize("symmetric", [True, False])
def test_before_learning_a_soft_layer_is_the_float_one(symmetric: bool) -> None:
    model, x = one(8, 4), correlated(64, 8, seed=0)
    made = copy.deepcopy(model)
    how = bits(4, 16, fine=True, symmetric=symmetric)
    RoundToNearest().quantize(made, calibration=calibrate(model, [x]), bits=how)
    soft = SoftLinear(made.linear, model.linear.weight.detach())
    with torch.no_grad():
        # All but weights beyond the grid's end, which rounding clips too.
        assert power_ratio(soft(x), model(x)) < 1e-3
        soft.v_OI.copy_(torch.where(soft_bit(soft.v_OI) >= 0.5, 1.0, -1.0))
    assert torch.equal(soft.hardened().integer_codes(), made.linear.integer_codes())


def test_it_finds_better_roundings_and_none_better_than_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One output of eight inputs in 3 bits: all 256 roundings up or down can be tried."""
    monkeypatch.setattr("baselines.reconstruction.PAPER_ITERATIONS", 2000)
    monkeypatch.setattr("baselines.reconstruction.PAPER_RATE", 0.01)
    settings = Reconstruction(budget=Budget.paper, calls=1, capture_bytes=1, regularization=1e-3)
    total = {"nearest": 0.0, "found": 0.0, "best": 0.0}
    for seed in range(4):
        model, x = one(8, 1, seed=seed, bias=False), correlated(256, 8, seed=seed)
        made = copy.deepcopy(model)
        calibration = calibrate(model, [x], rows=256)
        RoundToNearest().quantize(made, calibration=calibration, bits=bits(3, 16, fine=True))
        soft = SoftLinear(made.linear, model.linear.weight.detach())
        with torch.no_grad():
            target = [model(x)]
        learn([soft], loss=lambda s=soft, x=x, t=target: output_loss([s(x)], t), settings=settings)
        w, step = model.linear.weight.detach().double()[0], float(made.linear.weight_scale)
        power = float((x.double() @ w).square().sum())
        down = (w / step).floor()
        errors = []
        for ups in itertools.product((0, 1), repeat=8):
            q = (down + torch.tensor(ups)).clamp(-4, 3) * step
            errors.append(float((x.double() @ (q - w)).square().sum()) / power)
        total["nearest"] += power_ratio(made(x), model(x))
        total["found"] += power_ratio(soft.hardened()(x), model(x))
        total["best"] += min(errors)
    assert total["best"] <= total["found"] * (1 + 1e-4)
    # It is a local search: about a tenth of the error here, and not always the least.
    assert total["found"] < 0.5 * total["nearest"]


def test_blocks_are_the_innermost_and_in_order(given: Any) -> None:
    model, calibration = given
    captured = calibration.captured
    assert ordered_blocks(model, captured=captured, call=captured.calls[0]) == ["block"]


@pytest.mark.parametrize("method", [AdaRound, QDiffusion, Ptq4Dm, Ptq4Dit])
def test_reconstruction_lowers_the_models_error(given: Any, method: Any) -> None:
    exact = outputs(given[0])
    nearest, _ = quantized(RoundToNearest(), HOW, given)
    made, report = quantized(method(calls=8), HOW, given)
    assert power_ratio(outputs(made), exact) < 0.8 * power_ratio(outputs(nearest), exact)
    assert {entry["rounding"] for entry in report.layers_quantized} == {"adaround"}
    assert any("iterations" in line for line in report.left_out)


def test_learned_static_steps_lower_it_further(given: Any) -> None:
    exact, how = outputs(given[0]), bits(8, 4)
    with_steps, _ = quantized(AdaRound(calls=8), how, given)
    without, _ = quantized(AdaRound(calls=8, learn_steps=False), how, given)
    scales = [model.block.down.activation_scale for model in (with_steps, without)]
    assert not torch.equal(*scales)
    assert power_ratio(outputs(with_steps), exact) < power_ratio(outputs(without), exact)


def fake_calls(per_step: int = 10) -> list[Call]:
    return [
        Call(timestep=t, arguments=n, stored_bytes=1) for n in range(per_step) for t in TIMESTEPS
    ]


def test_qdiffusion_draws_evenly_spaced_steps() -> None:
    drawn = QDiffusion(calls=8).draw(fake_calls(), generator=generator(0))
    assert sorted(call.timestep for call in drawn) == sorted([*TIMESTEPS, *TIMESTEPS])
    few = QDiffusion(calls=6, uniform_steps=2).draw(fake_calls(), generator=generator(0))
    assert {call.timestep for call in few} == {TIMESTEPS[0], TIMESTEPS[-1]}
    assert len({call.arguments for call in few}) > 1


def test_ptq4dm_draws_a_clipped_normal() -> None:
    drawn = Ptq4Dm(calls=20000).draw(fake_calls(), generator=generator(0))
    shares = [sum(call.timestep == t for call in drawn) / 20000 for t in TIMESTEPS]
    normal = torch.distributions.Normal(0.4 * 900, 0.4 * 900)
    edges = [(a + b) / 2 for a, b in itertools.pairwise(TIMESTEPS)]
    upto = [float(normal.cdf(torch.tensor(edge))) for edge in edges]
    expected = [1 - upto[0], upto[0] - upto[1], upto[1] - upto[2], upto[2]]
    assert shares == pytest.approx(expected, abs=0.015)


def test_qdiffusion_splits_what_is_concatenated(given: Any) -> None:
    model, calibration = given
    segment = SimpleNamespace(size=FEATURES, low=-math.inf, high=math.inf, one_sided=False)
    graph = {
        "block.down": SimpleNamespace(
            output_segments=(FEATURES,),
            input_segments=(segment, segment),
            head_segments=(2 * FEATURES,),
        )
    }
    split = Calibration(
        statistics=calibration.statistics, forwards=0, graph=graph, captured=calibration.captured
    )
    made, _ = quantized(QDiffusion(calls=4), STATIC, (model, split))
    assert made.block.down.spec.activation_blocks == (FEATURES, FEATURES)
    assert made.block.down.weight_scale.shape == (1, 2)
    plain, _ = quantized(QDiffusion(calls=4, split_shortcuts=False), STATIC, (model, split))
    assert plain.block.down.spec.activation_blocks == (2 * FEATURES,)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (AdaRound, {"budget": Budget.paper}),
        (AdaRound, {"iterations": 3}),
        (AdaRound, {"calls": 1}),
        (AdaRound, {"regularization": 1.0}),
        (AdaRound, {"warm_up": 0.9}),
        (AdaRound, {"beta_start": 4.0}),
        (AdaRound, {"beta_end": 10.0}),
        (AdaRound, {"learn_steps": False}),
        (AdaRound, {"seed": 1}),
        (QDiffusion, {"uniform_steps": 1}),
        (Ptq4Dm, {"mean": 1.0}),
        (Ptq4Dm, {"std": 0.0}),
        (Ptq4Dit, {"correlation": False}),
    ],
    ids=str,
)
def test_each_setting_reaches_the_computation(
    given: Any, method: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baselines.reconstruction.PAPER_ITERATIONS", 30)
    monkeypatch.setattr("baselines.reconstruction.PAPER_STEP_ITERATIONS", 5)
    # A strong regularizer, so that its schedule shows within so few iterations.
    base = {"calls": 4, "regularization": 0.1}
    before, _ = quantized(method(**base), STATIC, given)
    after, _ = quantized(method(**{**base, **change}), STATIC, given)
    assert not torch.equal(outputs(before), outputs(after))


@pytest.mark.parametrize("method", [AdaRound, QDiffusion, Ptq4Dm, Ptq4Dit])
def test_what_the_statistics_are_to_hold_is_asked_for(method: Any) -> None:
    needs = method(sample_rows=77, capture_megabytes=3).needs()
    assert (needs.rows, needs.capture_bytes) == (77, 3 * 2**20)


@pytest.mark.parametrize(
    "change",
    [{"iterations": 3}, {"calls": 1}, {"regularization": 1.0}, {"learn_steps": False}, {"seed": 1}],
    ids=str,
)
@pytest.mark.parametrize("method", [QDiffusion, Ptq4Dm, Ptq4Dit])
def test_the_engines_settings_reach_those_that_stand_on_it(
    given: Any, method: Any, change: dict[str, Any]
) -> None:
    base = {"calls": 4, "regularization": 0.1}
    before, _ = quantized(method(**base), STATIC, given)
    after, _ = quantized(method(**{**base, **change}), STATIC, given)
    assert not torch.equal(outputs(before), outputs(after))


def test_the_cap_limits_the_calls(given: Any, tmp_path: Path) -> None:
    model, calibration = given
    size = calibration.captured.calls[0].stored_bytes
    few = Calibration(
        statistics=calibration.statistics,
        forwards=0,
        graph={},
        captured=calibration.captured.within(2 * size),
    )
    assert AdaRound(capture_megabytes=1).needs().capture_bytes == 2**20
    all_calls = outputs(quantized(AdaRound(calls=8), HOW, given)[0])
    assert not torch.equal(outputs(quantized(AdaRound(calls=8), HOW, (model, few))[0]), all_calls)


def test_what_it_cannot_do_is_said(given: Any) -> None:
    model, calibration = given
    fp8 = TensorScheme(num_bits=8, number_format=NumberFormat.fp8_e4m3)
    how = Bits(name="fp8", weight=fp8, activation=fp8)
    assert "neighbouring integers" in (AdaRound().unsupported(how) or "")
    bare = Calibration(statistics=calibration.statistics, forwards=0, graph={})
    with pytest.raises(ValueError, match="stored calls"):
        AdaRound().quantize(copy.deepcopy(model), calibration=bare, bits=HOW)
    with pytest.raises(ValueError, match="at least 1"):
        AdaRound(calls=0)
    with pytest.raises(ValueError, match="iterations=0"):
        AdaRound(iterations=0)
    with pytest.raises(ValueError, match="mean in"):
        Ptq4Dm(mean=2.0)


def test_the_float_model_and_its_gradients_are_left_alone(given: Any) -> None:
    model, calibration = copy.deepcopy(given[0]), given[1]
    before: list[Tensor] = [p.detach().clone() for p in model.parameters()]
    quantized(AdaRound(calls=2), HOW, (model, calibration))
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None


def test_channels_are_summed_where_they_lie() -> None:
    """A map's are dimension 1, a sequence's the last: the mean is over all else."""
    g = torch.Generator().manual_seed(0)
    for shape, dim in (((2, 3, 4, 5), 1), ((2, 7, 3), 2), ((2, 3, 2, 4, 5), 1), ((6, 3), 1)):
        a, b = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
        expected = (a - b).double().square().sum(dim).mean()
        assert float(output_loss([a], [b])) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("features", "rotated"), [(6, False), (7, False), (12, True)])
@pytest.mark.parametrize("method", [QuaRot, SpinQuant])
def test_what_is_not_rotated_is_said_by_its_rule(
    method: type, features: int, rotated: bool
) -> None:
    model = one(features, 4)
    calibration = calibrate(model, [correlated(64, features, seed=0)])
    report = method().quantize(model, calibration=calibration, bits=bits(8, 8, fine=True))
    notes = " ".join(report.layers_quantized[0]["notes"])
    assert (f"{features} input features are not divisible by 4" in notes) == (not rotated)
    missing = [line for line in report.left_out if "divisible by 4" in line]
    assert bool(missing) == (not rotated)
