"""Small floats: every value and tie by enumeration, and the block formats' scales."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from segquant.core import activation as act
from segquant.core.activation import ActivationGrid
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.floats import (
    E2M1_VALUES,
    FloatGrid,
    FloatKind,
    ScaleRounding,
    e8m0_block_scales,
)
from segquant.core.layer_pass import quantize_layers
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import GptqSettings, Rounding, gptq, gptq_factor
from segquant.core.schemes import Bits, Granularity, NumberFormat, TensorScheme
from segquant.core.segments import LayerShape
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from segquant.core.weights import (
    WeightGrid,
    dequantize_weight,
    fake_quantize_weight,
    quantize_weight,
    weight_scales,
)
from tests.unit.core.helpers import TENSOR, calibrate, correlated, generator, one, power_ratio

FP8 = {NumberFormat.fp8_e4m3: (4, 3, 448.0), NumberFormat.fp8_e5m2: (5, 2, 57344.0)}
BLOCKED = {NumberFormat.nvfp4: (4, 16), NumberFormat.mxfp4: (4, 32), NumberFormat.mxfp8: (8, 32)}
EVERY = (NumberFormat.int16, *FP8, *BLOCKED)


def scheme(what: NumberFormat, *, dynamic: bool = False) -> TensorScheme:
    if what in BLOCKED:
        num_bits, size = BLOCKED[what]
        group = Granularity.per_group
        return TensorScheme(
            num_bits=num_bits,
            number_format=what,
            granularity=group,
            group_size=size,
            dynamic=dynamic,
        )
    return TensorScheme(num_bits=8 if what in FP8 else 16, number_format=what)


def bits(what: NumberFormat) -> Bits:
    return Bits(name="f", weight=scheme(what), activation=scheme(what, dynamic=what in BLOCKED))


def values_of(exponent_bits: int, mantissa_bits: int, largest: float) -> list[tuple[float, bool]]:
    """Every value from zero up, with whether its mantissa is even. From the definition."""
    bias, found = 2 ** (exponent_bits - 1) - 1, []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            part = m / 2**mantissa_bits
            value = 2.0 ** (1 - bias) * part if e == 0 else 2.0 ** (e - bias) * (1 + part)
            if value <= largest:
                found.append((value, m % 2 == 0))
    return found


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (FloatKind.e4m3, (4, 3, 448.0)),
        (FloatKind.e5m2, (5, 2, 57344.0)),
        (FloatKind.e2m1, (2, 1, 6.0)),
    ],
)
def test_every_value_every_tie_and_what_lies_beyond(
    kind: FloatKind, layout: tuple[int, int, float]
) -> None:
    """The authors' fallback has no e4m3 subnormals, and its e5m2 reaches 1.9e9."""
    known, grid = values_of(*layout), FloatGrid(kind)
    for (low, low_even), (high, _) in pairwise(known):
        tie = (low + high) / 2
        asked = torch.tensor([low, tie, tie * (1 - 1e-6), tie * (1 + 1e-6), high])
        expected = torch.tensor([low, low if low_even else high, low, high, high])
        for sign in (1, -1):
            assert torch.equal(grid.nearest_(sign * asked), sign * expected), (low, high)
    top = known[-1][0]
    assert grid.nearest_(torch.tensor([1e30, -1e30, torch.inf])).tolist() == [top, -top, top]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(FloatKind.e4m3, torch.float8_e4m3fn), (FloatKind.e5m2, torch.float8_e5m2)],
)
def test_all_halves_as_torch_casts_them(kind: FloatKind, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    grid = FloatGrid(kind)
    inside = every[every.abs() <= grid.quant_max]
    found = grid.nearest_(inside.clone())
    assert torch.equal(found.to(dtype).view(torch.uint8), inside.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("kind", list(FloatKind))
def test_patterns_round_trip(kind: FloatKind) -> None:
    grid = FloatGrid(kind)
    values = grid.nearest_(grid.quant_max * torch.randn(50, generator=generator(0)) / 2)
    stored = grid.store(values)
    assert stored.dtype == torch.int8
    assert torch.equal(grid.restore(stored), values)


@pytest.mark.parametrize("what", sorted(FP8, key=str))
def test_fp8_dual_scale_against_the_equations(what: NumberFormat) -> None:
    x = torch.nn.functional.silu(3 * torch.randn(50, 8, generator=generator(0)))
    grid = ActivationGrid(scheme=scheme(what), blocks=(8,), dual=(True,))
    static = act.static_scales(x.amin(0), x.amax(0), grid=grid)
    found = act.fake_quantize(x, grid=grid, static=static)
    top = FP8[what][2]
    steps = torch.where(x < 0, -x.min() / top, x.max() / top)
    dtype = torch.float8_e4m3fn if what is NumberFormat.fp8_e4m3 else torch.float8_e5m2
    assert torch.equal(found, (x / steps).clamp(-top, top).to(dtype).float() * steps)


def test_mx_scales_are_powers_of_two_and_never_let_a_block_vanish() -> None:
    grid = FloatGrid(FloatKind.e2m1)
    amax = torch.tensor([0.0, 1e-35, 3.9, 4.0, 6.0, 7.99, 8.0, 1e30])
    found = e8m0_block_scales(amax, grid=grid)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2:7].tolist() == [0.5, 1.0, 1.0, 1.0, 2.0]
    mantissa, _ = torch.frexp(found)
    assert bool((mantissa == 0.5).all())


@pytest.mark.parametrize("kind", [FloatKind.e2m1, FloatKind.e4m3])
def test_mx_scales_rounded_up_saturate_nothing_and_are_the_least_that_do(kind: FloatKind) -> None:
    grid = FloatGrid(kind)
    limit = torch.tensor(grid.quant_max) * 2.0 ** torch.arange(-20, 20)
    edges = torch.cat([limit, limit.nextafter(torch.tensor(torch.inf)), limit.nextafter(limit * 0)])
    amax = torch.cat([edges, torch.randn(500, generator=generator(3)).exp()])
    down = e8m0_block_scales(amax, grid=grid)
    up = e8m0_block_scales(amax, grid=grid, rounding=ScaleRounding.ceil)
    assert bool((amax <= up * grid.quant_max).all())
    assert bool((amax > up / 2 * grid.quant_max).all())
    assert torch.equal(up, torch.where(amax > down * grid.quant_max, 2 * down, down))
    assert 0 < float((up > down).float().mean()) < 1
    zero = torch.zeros(1)
    assert e8m0_block_scales(zero, grid=grid, rounding=ScaleRounding.ceil).item() == 1


@pytest.mark.parametrize("what", list(NumberFormat), ids=lambda one: one.name)
def test_only_the_mx_formats_round_their_scales(what: NumberFormat) -> None:
    if what in (NumberFormat.mxfp4, NumberFormat.mxfp8):
        return
    with pytest.raises(ValueError, match="scale_rounding=ceil with number_format="):
        TensorScheme(num_bits=8, number_format=what, scale_rounding=ScaleRounding.ceil)


def test_scales_rounded_up_reach_weights_and_inputs() -> None:
    """A block whose largest value is just below a power of two: floor cuts it, ceil does not."""
    x = torch.full((2, 32), 0.25)
    x[:, 0] = 1.95
    kinds = {}
    for rounding in ScaleRounding:
        how = replace(scheme(NumberFormat.mxfp8), scale_rounding=rounding)
        weight = fake_quantize_weight(x, grid=WeightGrid(scheme=how, row_blocks=(2,), blocks=(32,)))
        grid = ActivationGrid(scheme=replace(how, dynamic=True), blocks=(32,), dual=(False,))
        assert torch.equal(weight, act.fake_quantize(x, grid=grid, static=None))
        kinds[rounding] = float(weight[0, 0])
    assert kinds == {ScaleRounding.floor: 1.75, ScaleRounding.ceil: 2.0}
    assert TensorScheme.describe(how).endswith("scales up")


@pytest.mark.parametrize("what", sorted(BLOCKED, key=str))
@pytest.mark.parametrize("features", [64, 72, 8])
def test_weight_blocks(what: NumberFormat, features: int) -> None:
    """Against a plain loop; a last block that is not full is as if padded with zeros."""
    w = torch.randn(5, features, generator=generator(1)) * torch.logspace(-3, 3, features)
    w[2] = 0
    size = BLOCKED[what][1]
    sizes = tuple(min(size, features - start) for start in range(0, features, size))
    found = fake_quantize_weight(
        w, grid=WeightGrid(scheme=scheme(what), row_blocks=(5,), blocks=sizes)
    )
    assert torch.equal(found, torch.stack([blocks_by_hand(row, what, w.abs().max()) for row in w]))


def blocks_by_hand(row: Tensor, what: NumberFormat, amax: Tensor) -> Tensor:
    parts = []
    for part in row.split(BLOCKED[what][1]):
        reach = part.abs().max()
        if reach == 0:
            parts.append(part)
            continue
        if what is NumberFormat.nvfp4:
            tensor_scale = amax / (6.0 * 448.0)
            step = (reach / 6.0 / tensor_scale).to(torch.float8_e4m3fn).float()
            step = step.clamp(min=2.0**-9) * tensor_scale
        else:
            top = 2 if what is NumberFormat.mxfp4 else 8
            step = 2.0 ** (torch.floor(torch.log2(reach)) - top)
        units = part / step
        if what is NumberFormat.mxfp8:
            parts.append(units.clamp(-448, 448).to(torch.float8_e4m3fn).float() * step)
            continue
        table = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)])
        parts.append(table[(units[:, None] - table).abs().argmin(1)] * step)
    return torch.cat(parts)


@pytest.mark.parametrize("what", EVERY, ids=lambda what: what.name)
@pytest.mark.parametrize("rounding", list(Rounding))
def test_layers_of_every_format_run_save_and_load(
    what: NumberFormat, rounding: Rounding, tmp_path: object
) -> None:
    model, x = one(72, 24), correlated(128, 72, seed=2, spread=0.5)
    exact = model(x).detach()
    cut = LayerShape(output=(8, 16), input=(32, 40), one_sided=(False, True))
    recipe = LayerRecipe(
        rounding=rounding,
        smoothing=SmoothingSettings(mode=SmoothingMode.search, alpha_step=0.5),
        dual_scale=True,
    )
    report = quantize_layers(
        model,
        calibration=calibrate(model, [x]),
        bits=bits(what),
        recipe=recipe,
        shape_of=lambda *_: cut,
    )
    found = model(x)
    limit = {16: 1e-6, 8: 0.01, 4: 0.05}[bits(what).weight.num_bits]
    assert power_ratio(found, exact) < limit
    save_quantized(model, f"{tmp_path}/saved", report)
    fresh, _ = load_quantized(one(72, 24, seed=9), f"{tmp_path}/saved")
    assert torch.equal(fresh(x), found)
    assert torch.equal(model.half().float()(x), model.float()(x))


@pytest.mark.parametrize(
    ("what", "per_weight"),
    [
        (NumberFormat.nvfp4, 4 + 8 / 16 + 64 / (64 * 32)),  # both tensor scales
        (NumberFormat.mxfp4, 4 + 8 / 32),
        (NumberFormat.mxfp8, 8 + 8 / 32),
        (NumberFormat.fp8_e4m3, 8 + 64 / (64 * 32)),
        (NumberFormat.int16, 16 + 64 / (64 * 32)),
    ],
)
def test_bits_are_counted_with_their_scales(what: NumberFormat, per_weight: float) -> None:
    model, x = one(64, 32), correlated(64, 64, seed=0)
    report = quantize_layers(
        model, calibration=calibrate(model, [x]), bits=bits(what), recipe=LayerRecipe()
    )
    assert report.effective_bits_per_weight == pytest.approx(per_weight)


@pytest.mark.parametrize("what", [NumberFormat.fp8_e4m3, *BLOCKED], ids=lambda what: what.name)
def test_gptq_gains_on_grids_that_are_not_uniform(what: NumberFormat) -> None:
    x, w = correlated(1024, 64, seed=0), torch.randn(48, 64, generator=generator(5))
    size = BLOCKED.get(what, (0, 64))[1]
    grid = WeightGrid(scheme=scheme(what), row_blocks=(48,), blocks=(size,) * (64 // size))
    scales = weight_scales(w, grid=grid)
    factor = gptq_factor(x.T @ x, settings=GptqSettings())
    codes = gptq(w, factor, scales=scales, grid=grid, block_size=16).codes_OI
    assert torch.equal(grid.codes.nearest_(codes.clone()), codes)
    nearest = quantize_weight(w, scales=scales, grid=grid)
    errors = [
        power_ratio(x @ dequantize_weight(some, scales=scales, grid=grid).T, x @ w.T)
        for some in (codes, nearest)
    ]
    assert errors[0] < 0.75 * errors[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_bits": 4, "number_format": "fp8_e4m3"}, "set num_bits=8"),
        ({"num_bits": 8, "number_format": "int16"}, "set num_bits=16"),
        ({"num_bits": 8, "number_format": "fp8_e5m2", "symmetric": False}, "no zero point"),
        ({"num_bits": 4, "number_format": "nvfp4"}, "set per_group and 16"),
    ],
)
def test_what_a_format_fixes(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorScheme(**given)  # type: ignore[arg-type]


def test_sixteen_bits_of_integers_are_not_sixteen_bits_unquantized() -> None:
    assert scheme(NumberFormat.int16).quantized
    assert not TensorScheme(num_bits=16, granularity=TENSOR).quantized
