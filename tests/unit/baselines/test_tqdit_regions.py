"""TQ-DiT's regions: the grid and its search against a plain statement in float64."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.rtn import RoundToNearest
from baselines.tqdit_regions import TqDitRegions
from segquant.core import Bits, Calibration
from tests.unit.core.helpers import bits, calibrate, one

FEATURES = 16
STATIC = bits(8, 4)
FACTORS = [1 - 0.02 * n for n in range(36)]


def part(low: float, *, one_sided: bool = True) -> SimpleNamespace:
    return SimpleNamespace(one_sided=one_sided, low=low)


GRAPHS = {
    "gelu": part(-0.17),
    "silu": part(-0.2785),
    "other": part(-float("inf"), one_sided=False),
}


def gelu_rows(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    x = nn.functional.gelu(torch.randn(256, FEATURES, generator=g))
    x[0, 0] = 9.0  # an outlier that a searched scale leaves outside
    return x


def given(after: str) -> tuple[nn.Sequential, Calibration]:
    model = one(FEATURES, 8)
    calibration = calibrate(model, [gelu_rows(0)])
    (name,) = calibration.statistics
    graph: Any = {name: SimpleNamespace(input_segments=(GRAPHS[after],), conditioning="")}
    return model, replace(calibration, graph=graph)


def quantized(method: Any, how: Bits, after: str) -> tuple[nn.Module, Any]:
    model, calibration = given(after)
    made = copy.deepcopy(model)
    seen = method.needs().of(calibration)
    return made, method.quantize(made, calibration=seen, bits=how)


def on_grid(x: Tensor, below: float, above: float) -> Tensor:
    """Eight codes below zero, seven above, each side with its own step."""
    step = torch.where(x < 0, below / 8, above / 7)
    return (x / step).round().clamp(-8, 7) * step


def least(x: Tensor, reach: float) -> float:
    """The reach of one side whose values it puts nearest."""
    return min(
        (reach * f for f in FACTORS),
        key=lambda r: float((on_grid(x, r, r) - x).square().sum()),
    )


def output(made: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return made(x).double()


def expected(x: Tensor, below: float, above: float) -> Tensor:
    model, _ = given("gelu")
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    w = linear.weight.detach().double()
    step = w.abs().max() / 127
    bias = 0 if linear.bias is None else linear.bias.detach().double()
    return on_grid(x.double(), below, above) @ ((w / step).round() * step).T + bias


def test_each_region_has_the_scale_of_least_error() -> None:
    made, report = quantized(TqDitRegions(), STATIC, "gelu")
    seen, x = gelu_rows(0).double(), gelu_rows(1)
    below = least(seen[seen < 0], float(-seen.min()))
    above = least(seen[seen > 0], float(seen.max()))
    assert above < float(seen.max())
    want = expected(x, below, above)
    assert float((output(made, x) - want).abs().max() / want.abs().max()) < 1e-5
    assert "two regions behind GELU" in report.elements[0]
    assert report.extra_macs_fraction == 1.0


def test_without_the_search_each_region_reaches_its_largest_value() -> None:
    made, report = quantized(TqDitRegions(search=False), STATIC, "gelu")
    seen, x = gelu_rows(0).double(), gelu_rows(1)
    want = expected(x, float(-seen.min()), float(seen.max()))
    assert float((output(made, x) - want).abs().max() / want.abs().max()) < 1e-5
    assert "search for the regions' scales" in report.left_out


@pytest.mark.parametrize("after", ["silu", "other"])
def test_other_inputs_are_rounded_to_nearest(after: str) -> None:
    made, report = quantized(TqDitRegions(), STATIC, after)
    plain, _ = quantized(RoundToNearest(), STATIC, after)
    x = gelu_rows(1)
    assert torch.equal(output(made, x), output(plain, x))
    assert report.extra_macs_fraction == 0
    assert any("no Linear's input is proven to come from GELU" in one for one in report.left_out)


def test_rows_that_are_fewer_are_searched_on() -> None:
    made, _ = quantized(TqDitRegions(sample_rows=8), STATIC, "gelu")
    whole, _ = quantized(TqDitRegions(), STATIC, "gelu")
    assert not torch.equal(output(made, gelu_rows(1)), output(whole, gelu_rows(1)))


def test_dynamic_bits_take_each_rows_own_values() -> None:
    _, report = quantized(TqDitRegions(), bits(8, 4, fine=True), "gelu")
    assert "search for the regions' scales" in report.left_out


def test_what_it_cannot_do_is_refused() -> None:
    wide = bits(8, 16)
    assert "16 bit" in (TqDitRegions().unsupported(wide) or "")
    model, calibration = given("gelu")
    with pytest.raises(ValueError, match="static graph"):
        TqDitRegions().quantize(model, calibration=replace(calibration, graph=None), bits=STATIC)
