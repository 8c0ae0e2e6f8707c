"""SignRound against its statement in float64, and each of its settings."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.quarot import QuaRot
from baselines.rtn import RoundToNearest
from baselines.signround import SignRound
from baselines.svdquant import SvdQuant
from segquant.core import (
    Bits,
    LayerRecipe,
    LayerShape,
    Rounding,
    SignRoundSettings,
    SmoothingMode,
    SmoothingSettings,
    quantize_layers,
)
from segquant.core.floats import FloatGrid, FloatKind, e4m3_block_scales, nvfp4_tensor_scale
from segquant.core.lowrank import LowRankSettings, low_rank_branch
from segquant.core.signed_rounding import signround, spacing
from segquant.core.weights import (
    WeightGrid,
    dequantize_weight,
    fake_quantize_weight,
    weight_scales,
)
from tests.unit.core.helpers import (
    CHANNEL,
    GROUP,
    TENSOR,
    bits,
    calibrate,
    correlated,
    generator,
    one,
    power_ratio,
    scheme,
)

W4 = bits(4, 16, fine=True)
SCHEMES = {
    "int4": scheme(4, CHANNEL),
    "int4 tensor": scheme(4, TENSOR),
    "int4 asymmetric": scheme(4, CHANNEL, symmetric=False),
    "int4 groups": scheme(4, GROUP, group_size=16),
    "fp8": scheme(8, CHANNEL, number_format="fp8_e4m3"),
    "nvfp4": scheme(4, GROUP, group_size=16, number_format="nvfp4"),
    "nvfp4 4/6": scheme(4, GROUP, group_size=16, number_format="nvfp4", scale_rule="four_over_six"),
    "mxfp4": scheme(4, GROUP, group_size=32, number_format="mxfp4"),
}


def problem(how: Any) -> tuple[Tensor, Tensor, WeightGrid]:
    w = torch.randn(12, 64, generator=generator(1)) * torch.logspace(-1, 0, 12)[:, None]
    x = correlated(512, 64, seed=2, spread=0.5)
    size = how.group_size or 64
    return w, x.T @ x, WeightGrid(scheme=how, row_blocks=(12,), blocks=(size,) * (64 // size))


def error(w: Tensor, gram: Tensor, values: Tensor) -> float:
    wrong = values.double() - w.double()
    return float(((wrong @ gram.double()) * wrong).sum())


@pytest.mark.parametrize("name", SCHEMES)
def test_it_is_below_rounding_to_nearest_on_every_grid(name: str) -> None:
    w, gram, grid = problem(SCHEMES[name])
    start = weight_scales(w, grid=grid)
    learned = signround(
        w, lambda d: d @ gram, scales=start, grid=grid, settings=SignRoundSettings()
    )
    values = dequantize_weight(learned.codes_OI, scales=learned.scales, grid=grid)
    nearest = error(w, gram, fake_quantize_weight(w, grid=grid))
    assert error(w, gram, values) == pytest.approx(learned.remaining * nearest, rel=1e-3)
    assert learned.remaining < 0.8
    assert torch.equal(grid.codes.nearest_(learned.codes_OI.clone()), learned.codes_OI)
    share = learned.scales.scale / start.scale
    assert float(share.max()) <= 1 + 1e-6
    if name == "mxfp4":
        assert torch.equal(share, torch.ones_like(share))
    else:
        assert float(share.min()) < 1
    if "nvfp4" in name:  # scales are still e4m3 numbers times the tensor's
        tensor_scale = nvfp4_tensor_scale(w.abs().max(), rule=SCHEMES[name].scale_rule)
        again = e4m3_block_scales(6 * learned.scales.scale, tensor_scale=tensor_scale)
        torch.testing.assert_close(again, learned.scales.scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("iterations", "tolerance"), [(3, 1e-4), (100, 0.05)])
def test_against_autograd_in_float64(symmetric: bool, iterations: int, tolerance: float) -> None:
    """The published loop, by automatic differentiation with rounding as the identity.

    Signs of gradients near zero depend on the last digits, so that long loops come apart.
    """
    how = scheme(4, CHANNEL, symmetric=symmetric)
    w, gram, grid = problem(how)
    settings = SignRoundSettings(iterations=iterations)
    start = weight_scales(w, grid=grid)
    found = signround(w, lambda d: d @ gram, scales=start, grid=grid, settings=settings)
    base, h = start.scale.double(), gram.double()
    zero = 0 if start.zero_point is None else start.zero_point.double()
    v = torch.zeros(12, 64, dtype=torch.float64, requires_grad=True)
    alpha = torch.ones(12, 1, dtype=torch.float64, requires_grad=True)
    least = torch.full((12,), torch.inf, dtype=torch.float64)
    for number in range(iterations + 1):
        s = base * alpha
        units = w.double() / s + v
        whole = (units.round() + zero).detach()
        passes = (whole >= -8) & (whole <= 7)
        code = whole.clamp(-8, 7) - zero + torch.where(passes, units - units.detach(), 0)
        wrong = code * s - w.double()
        rows = ((wrong @ h) * wrong).sum(1)
        least = torch.minimum(least, rows.detach())
        grads = torch.autograd.grad(rows.sum(), (v, alpha))
        step = (1 - number / iterations) / iterations
        with torch.no_grad():
            v.sub_(step * grads[0].sign()).clamp_(-0.5, 0.5)
            alpha.sub_(step * grads[1].sign()).clamp_(0.5, 1)
    values = dequantize_weight(found.codes_OI, scales=found.scales, grid=grid)
    assert error(w, gram, values) == pytest.approx(float(least.sum()), rel=tolerance)


def test_the_distance_to_the_next_value() -> None:
    four = torch.tensor([0.0, 0.4, 1.0, 1.9, 2.0, -3.5, 4.0, 6.0, 9.0])
    expected = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 2.0])
    assert torch.equal(torch.as_tensor(spacing(four, grid=FloatGrid(FloatKind.e2m1))), expected)
    eight = torch.tensor([0.0, 2.0**-9, 1.0, 1.9, -448.0])
    expected = torch.tensor([2.0**-9, 2.0**-9, 0.125, 0.125, 32.0])
    assert torch.equal(torch.as_tensor(spacing(eight, grid=FloatGrid(FloatKind.e4m3))), expected)


@cache
def layer() -> tuple[Any, Tensor, Any]:
    model, x = one(64, 32), correlated(512, 64, seed=3, spread=0.7)
    return model, x, calibrate(model, [x], graph={})


def run(method: Any, how: Bits = W4) -> tuple[Tensor, Any]:
    model, x, calibration = layer()
    made = copy.deepcopy(model)
    report = method.quantize(made, calibration=calibration, bits=how)
    with torch.no_grad():
        return made(x), report


def far(output: Tensor) -> float:
    model, x, _ = layer()
    return power_ratio(output, model(x).detach())


def test_the_row_is_better_than_nearest() -> None:
    learned, nearest = (run(method())[0] for method in (SignRound, RoundToNearest))
    assert far(learned) < 0.8 * far(nearest)


def test_what_it_did_is_said() -> None:
    _, report = run(SignRound())
    (entry,) = report.layers_quantized
    assert entry["rounding"] == "signround"
    assert [note for note in entry["notes"] if note.startswith("learned rounding: ")]
    assert any("SignRound" in one for one in report.elements)
    assert "learned ranges" in report.elements
    _, report = run(SignRound(learn_range=False))
    assert "learned ranges" in report.left_out
    microscaled = replace(W4, weight=SCHEMES["mxfp4"])
    _, report = run(SignRound(), microscaled)
    assert any(one.startswith("learned ranges: scales of MX") for one in report.left_out)


SVD = {"rank": 4, "iterations": 1, "smooth_grids": 3, "unsigned_shift": False,
       "modulation_in_16_bit": False}  # fmt: skip
LEARNED = {**SVD, "rounding": Rounding.signround}


@pytest.mark.parametrize(
    ("method", "base", "change"),
    [
        (SignRound, {}, {"iterations": 20}),
        (SignRound, {}, {"learning_rate": 0.02}),
        (SignRound, {}, {"learn_range": False}),
        (SignRound, {}, {"least_range": 0.99}),
        (SvdQuant, SVD, {"rounding": Rounding.signround}),
        (SvdQuant, LEARNED, {"signround_iterations": 20}),
        (SvdQuant, LEARNED, {"learning_rate": 0.02}),
        (SvdQuant, LEARNED, {"learn_range": False}),
        (SvdQuant, LEARNED, {"least_range": 0.99}),
        (SvdQuant, LEARNED, {"iterations": 20}),
        (QuaRot, {"rounding": Rounding.rtn}, {"rounding": Rounding.signround}),
    ],
    ids=str,
)
def test_each_setting_reaches_the_computation(
    method: Any, base: dict[str, Any], change: dict[str, Any]
) -> None:
    before, after = (run(method(**settings))[0] for settings in (base, {**base, **change}))
    assert not torch.equal(before, after)


def test_learning_the_residuals_rounding_gains_on_top_of_the_branch() -> None:
    assert far(run(SvdQuant(**LEARNED))[0]) < 0.9 * far(run(SvdQuant(**SVD))[0])
    assert SvdQuant(**LEARNED).needs().gram
    assert not SvdQuant(**SVD).needs().gram


def test_segments_with_vectors_of_their_own_are_learned_on_their_own_inputs() -> None:
    """Rows of two smoothing groups: together as each segment alone."""
    model, x, calibration = layer()
    recipe = LayerRecipe(
        rounding=Rounding.signround, smoothing=SmoothingSettings(mode=SmoothingMode.fixed)
    )
    made = copy.deepcopy(model)
    cut = LayerShape(output=(8, 24), input=(64,), one_sided=(False,))
    quantize_layers(made, calibration=calibration, bits=W4, recipe=recipe, shape_of=lambda *_: cut)
    for start, stop in ((0, 8), (8, 32)):
        part = one(64, stop - start)
        with torch.no_grad():
            part.linear.weight.copy_(model.linear.weight[start:stop])
            part.linear.bias.copy_(model.linear.bias[start:stop])
        quantize_layers(part, calibration=calibration, bits=W4, recipe=recipe)
        with torch.no_grad():
            torch.testing.assert_close(part(x), made(x)[:, start:stop])


def test_without_early_stop_all_iterations_are_made_and_the_best_is_kept() -> None:
    """Of errors 5, 4, 6, 3, 9 the loop that stops keeps the second, the other the fourth."""
    w = torch.randn(8, 16, generator=generator(4))
    kept = {}
    for early_stop, tried in ((True, 3), (False, 5)):
        seen: list[Tensor] = []

        def judge(residual: Tensor, branch: Any, seen: list[Tensor] = seen) -> float:
            seen.append(branch.product())
            return [5.0, 4.0, 6.0, 3.0, 9.0][len(seen) - 1]

        branch = low_rank_branch(
            w,
            output=(8,),
            inputs=(16,),
            settings=LowRankSettings(rank=2, iterations=5, early_stop=early_stop),
            dtype=torch.float32,
            quantized=lambda residual, seen=seen: residual.round() + 0.1 * len(seen),
            error=judge,
        )
        assert len(seen) == tried
        assert branch is not None
        kept[early_stop] = next(n for n, one in enumerate(seen) if one.equal(branch.product()))
    assert kept == {True: 1, False: 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [({"iterations": 0}, "at least 1"), ({"learning_rate": 0.0}, "null for"),
     ({"least_range": 1.5}, r"\(0, 1\]")],
)  # fmt: skip
def test_bad_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SignRound(**change)
