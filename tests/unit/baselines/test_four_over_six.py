"""Four Over Six against its statement in float64, wherever the bits may say it."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.four_over_six import FourOverSix
from baselines.gptq import Gptq
from baselines.peers.library import is_nvfp4
from baselines.rtn import RoundToNearest
from segquant.core import Bits, NumberFormat, ScaleRule, TensorScheme, load_quantized
from segquant.core import activation as act
from segquant.core.checkpoint import save_quantized
from segquant.core.floats import E2M1_VALUES, nvfp4_tensor_scale
from segquant.core.weights import WeightGrid, fake_quantize_weight, weight_scales
from tests.unit.core.helpers import GROUP, bits, calibrate, correlated, generator, one, power_ratio

PLAIN = TensorScheme(num_bits=4, number_format=NumberFormat.nvfp4, granularity=GROUP, group_size=16)
EITHER = replace(PLAIN, scale_rule=ScaleRule.four_over_six)
TABLE = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)]).double()


def how(rule: ScaleRule = ScaleRule.amax) -> Bits:
    both = replace(PLAIN, scale_rule=rule)
    return Bits(name="test", weight=both, activation=replace(both, dynamic=True))


def by_hand(x: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    """Values and which blocks are at 4, [..., 16 n]; a is the tensor's scale."""
    a = (amax / (6 * 256)).double()
    parts = x.double().reshape(-1, 16)
    found, at_four = torch.zeros_like(parts), []
    for n, part in enumerate(parts):
        tried = []
        for top in (6, 4):
            wanted = (part.abs().max() / a / top).float()
            s = float(wanted.to(torch.float8_e4m3fn).float().clamp(min=2.0**-9)) * a
            q = TABLE[((part / s)[:, None] - TABLE).abs().argmin(1)] * s
            tried.append((float((q - part).square().sum()), q))
        at_four.append(tried[1][0] < tried[0][0])
        found[n] = tried[at_four[-1]][1]
    return found.reshape(x.shape), torch.tensor(at_four)


def grid_of(scheme: TensorScheme, rows: int, features: int) -> WeightGrid:
    return WeightGrid(scheme=scheme, row_blocks=(rows,), blocks=(16,) * (features // 16))


def test_weights_and_inputs_are_the_better_of_both() -> None:
    x = torch.randn(24, 64, generator=generator(0)) * torch.logspace(-2, 1, 24)[:, None]
    expected, at_four = by_hand(x, x.abs().max())
    assert 0.2 < float(at_four.float().mean()) < 0.8  # neither choice alone
    weight = fake_quantize_weight(x, grid=grid_of(EITHER, 24, 64))
    assert power_ratio(weight.double(), expected) < 1e-10
    grid = act.ActivationGrid(
        scheme=replace(EITHER, dynamic=True), blocks=(16,) * 4, dual=(False,) * 4
    )
    static = act.static_scales(x.amin(0), x.amax(0), grid=grid)
    assert static.scale.item() == pytest.approx(float(x.abs().max()) / (6 * 256))
    assert torch.equal(act.fake_quantize(x, grid=grid, static=static), weight)
    assert torch.equal(act.fake_quantize(x[None], grid=grid, static=static)[0], weight)


def test_scales_stay_on_e4m3_with_room_for_four() -> None:
    """448 times 1.5 is beyond e4m3: with nvfp4's usual tensor scale the largest block has none."""
    x = torch.randn(8, 64, generator=generator(1))
    x[0, :16] = torch.tensor([5.0] + [4.1, -4.2, 3.9] * 5)  # the largest block is better at 4
    scales = weight_scales(x, grid=grid_of(EITHER, 8, 64)).scale
    stored = scales / nvfp4_tensor_scale(x.abs().max(), rule=ScaleRule.four_over_six)
    assert torch.allclose(stored.to(torch.float8_e4m3fn).float(), stored, rtol=1e-6)
    assert float(stored[0, 0]) == pytest.approx(384)
    assert float(stored.max()) == pytest.approx(384)


def test_no_block_is_worse_than_at_six_and_zero_stays() -> None:
    x = torch.randn(16, 64, generator=generator(2))
    x[3] = 0
    either = fake_quantize_weight(x, grid=grid_of(EITHER, 16, 64))
    assert bool((either[3] == 0).all())
    six = fake_quantize_weight(x, grid=grid_of(PLAIN, 16, 64))
    assert power_ratio(either, x) < power_ratio(six, x)


@pytest.mark.parametrize("what", [w for w in NumberFormat if w is not NumberFormat.nvfp4])
def test_other_formats_have_no_such_choice(what: NumberFormat) -> None:
    with pytest.raises(ValueError, match="scale_rule=four_over_six with number_format="):
        TensorScheme(num_bits=8, number_format=what, scale_rule=ScaleRule.four_over_six)


def run(method: Any, how: Bits) -> tuple[Any, Tensor, Tensor, Any]:
    model, x = one(64, 32), correlated(256, 64, seed=3)
    exact = model(x).detach()
    made = copy.deepcopy(model)
    report = method.quantize(made, calibration=calibrate(model, [x]), bits=how)
    with torch.no_grad():
        return made, made(x), exact, report


def test_the_row_is_rtn_with_the_bits_rule() -> None:
    _, by_row, exact, report = run(FourOverSix(), how())
    _, by_bits, _, _ = run(RoundToNearest(), how(ScaleRule.four_over_six))
    _, plain, _, _ = run(RoundToNearest(), how())
    assert torch.equal(by_row, by_bits)
    assert power_ratio(by_row, exact) < power_ratio(plain, exact)
    assert any("weights' blocks" in one for one in report.elements)
    assert any("inputs' blocks" in one for one in report.elements)
    entry = report.layers_quantized[0]
    assert entry["weight"].endswith("4/6")
    assert entry["activation"].endswith("4/6")


def test_the_inputs_choice_can_be_left_out() -> None:
    _, weights_alone, _, report = run(FourOverSix(activations=False), how())
    _, both, _, _ = run(FourOverSix(), how())
    assert not torch.equal(weights_alone, both)
    assert any("inputs' blocks" in one for one in report.left_out)
    unquantized = replace(how(), activation=TensorScheme(num_bits=16))
    _, _, _, report = run(FourOverSix(), unquantized)
    assert any("inputs' blocks" in one and "16 bit" in one for one in report.left_out)


def test_it_goes_with_gptq_and_is_saved(tmp_path: Any) -> None:
    made, by_gptq, exact, report = run(Gptq(), how(ScaleRule.four_over_six))
    _, nearest, _, _ = run(FourOverSix(), how())
    assert power_ratio(by_gptq, exact) < power_ratio(nearest, exact)
    save_quantized(made, tmp_path / "saved", report)
    fresh, _ = load_quantized(one(64, 32, seed=9), tmp_path / "saved")
    x = correlated(256, 64, seed=3)
    with torch.no_grad():
        assert torch.equal(fresh(x), by_gptq)


def test_it_costs_no_bits() -> None:
    reports = [run(method, how())[3] for method in (RoundToNearest(), FourOverSix())]
    assert reports[0].effective_bits_per_weight == reports[1].effective_bits_per_weight


def test_other_bits_are_refused_and_a_peer_does_not_claim_the_rule() -> None:
    assert "nvfp4" in (FourOverSix().unsupported(bits(4, 8, fine=True)) or "")
    assert FourOverSix().unsupported(how()) is None
    assert is_nvfp4(how())
    assert not is_nvfp4(how(ScaleRule.four_over_six))
