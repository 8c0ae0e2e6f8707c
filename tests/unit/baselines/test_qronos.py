"""Qronos against its algorithm in float64, what it records, and what it gains and costs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import Gptq
from baselines.qronos import Qronos
from segquant.core import (
    GptqSettings,
    GptqVariant,
    LayerRecipe,
    LowRankSettings,
    Rounding,
    Sequential,
    SmoothingMode,
    SmoothingSettings,
    quantize_layers,
)
from segquant.core.mismatch import MismatchRecorder
from segquant.core.rounding import Correction, gptq, gptq_factor
from segquant.core.weights import WeightGrid, dequantize_weight, weight_scales
from tests.unit.core import denoisers
from tests.unit.core.helpers import CHANNEL, bits, calibrate, correlated, generator, one, scheme
from tests.unit.core.test_sequential import Residual, output_error, replayed

W3 = bits(3, 16, fine=True)


def qronos_by_hand(w: Tensor, x: Tensor, seen: Tensor, *, damping: float) -> Tensor:
    """Each column in turn: the best code with the others free, by solving for all that is left."""
    w, x, seen = w.double(), x.double(), seen.double()
    step = w.abs().amax(1, keepdim=True) / 3
    h, g = seen.T @ seen, x.T @ seen
    damp = damping * h.diagonal().mean()

    def rounded(value: Tensor) -> Tensor:
        return (value[:, None] / step).round().clamp(-4, 3)[:, 0] * step[:, 0]

    first = (w @ g[:, 0] - w[:, 1:] @ h[1:, 0]) / h[0, 0]
    q = rounded(first)[:, None]
    eye = damp * torch.eye(h.shape[0], dtype=torch.float64)
    h, target = h + eye, w @ (g + eye)
    for column in range(1, w.shape[1]):
        left = target[:, column:] - q @ h[:column, column:]
        free = left @ torch.linalg.inv(h[column:, column:])
        q = torch.cat([q, rounded(free[:, 0])[:, None]], 1)
    return q


def differing(*, seed: int = 0, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    x = correlated(512, 24, seed=seed)
    seen = x + noise * x.std() * torch.randn(512, 24, generator=generator(seed + 1))
    return torch.randn(16, 24, generator=generator(9)), x, seen


def by_correction(w: Tensor, x: Tensor, seen: Tensor, **settings: Any) -> Tensor:
    gram = seen.T @ seen
    factor = gptq_factor(gram, settings=GptqSettings(**settings))
    grid = WeightGrid(scheme=scheme(3, CHANNEL), row_blocks=(16,), blocks=(24,))
    scales = weight_scales(w, grid=grid)
    own = Correction(pull_OI=w @ ((x - seen).T @ seen), diagonal_I=gram.diagonal())
    codes = gptq(w, factor, scales=scales, grid=grid, block_size=8, correction=own).codes_OI
    return dequantize_weight(codes, scales=scales, grid=grid).double()


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_against_the_algorithm_in_float64(damping: float) -> None:
    w, x, seen = differing()
    found = by_correction(w, x, seen, damping=damping)
    expected = qronos_by_hand(w, x, seen, damping=damping)
    same = ((found - expected).abs() < 1e-5).double().mean()
    assert float(same) > 0.98  # a tie by float32 rounding changes later columns of its row


def test_the_order_of_columns_is_followed() -> None:
    w, x, seen = differing(seed=4)
    order = (seen.T @ seen).diagonal().argsort(descending=True, stable=True)
    found = by_correction(w, x, seen, act_order=True)[:, order]
    expected = qronos_by_hand(w[:, order], x[:, order], seen[:, order], damping=0.01)
    assert float(((found - expected).abs() < 1e-5).double().mean()) > 0.98


def test_it_brings_the_outputs_back_where_inputs_differ() -> None:
    w, x, seen = differing()
    exact = x.double() @ w.double().T
    gram = seen.T @ seen
    grid = WeightGrid(scheme=scheme(3, CHANNEL), row_blocks=(16,), blocks=(24,))
    scales = weight_scales(w, grid=grid)
    factor = gptq_factor(gram, settings=GptqSettings())
    plain = gptq(w, factor, scales=scales, grid=grid, block_size=8).codes_OI
    values = dequantize_weight(plain, scales=scales, grid=grid).double()
    errors = [
        float((seen.double() @ q.T - exact).square().sum())
        for q in (by_correction(w, x, seen), values)
    ]
    assert errors[0] < 0.8 * errors[1]
    nowhere = Correction(pull_OI=torch.zeros_like(w), diagonal_I=gram.diagonal())
    none = gptq(w, factor, scales=scales, grid=grid, block_size=8, correction=nowhere).codes_OI
    assert torch.equal(none, plain)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 16), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.relu(self.a(x))
        return self.b(middle) + self.c(middle)


def test_what_is_recorded_is_the_product_of_both_inputs() -> None:
    model, x = Chain(), correlated(64, 24, seed=0)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.a.weight.add_(0.1 * torch.randn(24, 24, generator=generator(3)))
        recorder = MismatchRecorder(changed, model, layers=("b", "c"))
        with recorder:
            for part in x.split(16):
                changed(part)
        exact, seen = (torch.relu(m.a(x)).double() for m in (model, changed))
    expected = (exact - seen).T @ seen
    found = recorder.mismatches()
    assert list(found) == ["b", "c"]
    for product in found.values():
        torch.testing.assert_close(product.double(), expected, rtol=1e-4, atol=1e-4)
    assert not model.a._forward_pre_hooks
    assert not changed.b._forward_pre_hooks


def test_two_stages_against_the_algorithm() -> None:
    model, x = Chain(), correlated(512, 24, seed=0)
    quant = copy.deepcopy(model)
    calibration = replayed(model, list(x.split(128)))
    report = Qronos(sequential=Sequential.inputs).quantize(quant, calibration=calibration, bits=W3)
    with torch.no_grad():
        exact = torch.relu(model.a(x))
        seen = torch.relu(quant.a(x))
    expected = qronos_by_hand(model.b.weight.detach(), exact, seen, damping=0.01)
    same = ((quant.b.dense_OI.double() - expected).abs() < 1e-5).double().mean()
    assert float(same) > 0.95
    notes = {one["name"]: one["notes"] for one in report.layers_quantized}
    assert not notes["a"]
    assert any("corrected" in note for note in notes["b"])
    assert [one for one in report.elements if one == "correction for quantized layers before (2 of"
            " 3 Linears)"]  # fmt: skip


def test_forwards_are_counted_for_both_denoisers() -> None:
    model, x = Residual(blocks=2), correlated(64, 32, seed=0)
    calibration = replayed(model, list(x.split(16)))
    report = Qronos().quantize(copy.deepcopy(model), calibration=calibration, bits=W3)
    assert report.replay_forwards == 1 + 2 * 4 * 3


def test_the_whole_output_is_better_than_gptqs_in_sequence() -> None:
    ratios = []
    for seed in range(6):
        model, x = Residual(seed=seed), correlated(1024, 32, seed=seed)
        with torch.no_grad():
            exact = model(x)
        calibration = replayed(model, list(x.split(256)))
        errors = []
        for method in (Qronos(), Gptq(sequential=Sequential.blocks)):
            quant = copy.deepcopy(model)
            method.quantize(quant, calibration=calibration, bits=bits(2 + seed % 2, 16, fine=True))
            errors.append(output_error(quant, exact, x))
        ratios.append(errors[0] / errors[1])
    assert float(torch.tensor(ratios).log().mean().exp()) < 0.95


@pytest.mark.parametrize(
    "change",
    [{"damping": 0.5}, {"act_order": True}, {"sequential": Sequential.inputs}],
    ids=str,
)
def test_each_setting_reaches_the_computation(change: dict[str, Any]) -> None:
    model, x = Residual(blocks=2), correlated(256, 32, seed=0)
    calibration = replayed(model, list(x.split(64)))
    found = []
    for settings in ({}, change):
        quant = copy.deepcopy(model)
        Qronos(**settings).quantize(quant, calibration=calibration, bits=W3)
        with torch.no_grad():
            found.append(quant(x))
    assert not torch.equal(*found)


def test_lazy_blocks_change_nothing_but_last_digits() -> None:
    w, x, seen = differing()
    assert Qronos(block_size=4)._settings().block_size == 4
    gram = seen.T @ seen
    factor = gptq_factor(gram, settings=GptqSettings())
    grid = WeightGrid(scheme=scheme(3, CHANNEL), row_blocks=(16,), blocks=(24,))
    own = Correction(pull_OI=w @ ((x - seen).T @ seen), diagonal_I=gram.diagonal())
    scales = weight_scales(w, grid=grid)
    codes = [
        gptq(w, factor, scales=scales, grid=grid, block_size=size, correction=own).codes_OI
        for size in (4, 128)
    ]
    assert float((codes[0] == codes[1]).float().mean()) > 0.98


def test_it_goes_with_smoothing_and_a_low_rank_branch() -> None:
    """The corrected recipe under either is below the same without, on a real denoiser."""
    model, batches, _ = denoisers.sd3()
    calibration = replayed(model, batches)
    with torch.no_grad():
        exact = torch.cat([model(**batch)[0] for batch in batches])
    errors = []
    for corrected in (False, True):
        recipe = LayerRecipe(
            rounding=Rounding.gptq,
            smoothing=SmoothingSettings(mode=SmoothingMode.fixed),
            low_rank=LowRankSettings(rank=2),
            gptq=GptqSettings(corrected=corrected),
            sequential=Sequential.blocks,
        )
        quant = copy.deepcopy(model)
        quantize_layers(quant, calibration=calibration, bits=W3, recipe=recipe)
        with torch.no_grad():
            found = torch.cat([quant(**batch)[0] for batch in batches])
        errors.append(float((found - exact).square().sum() / exact.square().sum()))
    assert errors[1] < errors[0]


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="set blocks or inputs"):
        Qronos(sequential=Sequential.none)
    with pytest.raises(ValueError, match="set variant=cholesky"):
        GptqSettings(corrected=True, variant=GptqVariant.released)
    model, x = one(24, 8), correlated(64, 24, seed=0)
    with pytest.raises(ValueError, match=r"set calibration\.replay"):
        Qronos().quantize(model, calibration=calibrate(model, [x]), bits=W3)
