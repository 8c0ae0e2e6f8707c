"""The codebook of normal values against published tables and quadrature, and what rests on it."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from segquant.core.activation import ActivationGrid, fake_quantize
from segquant.core.grids import pack_int4, unpack_int4
from segquant.core.layer import quantize_linear
from segquant.core.linear import QuantLinear
from segquant.core.lloyd_max import CodebookGrid, lloyd_max_levels
from segquant.core.recipe import LayerRecipe, no_dual_scale
from segquant.core.rounding import Rounding
from segquant.core.schemes import Bits, NumberFormat, TensorScheme
from segquant.core.segments import whole
from segquant.core.weights import WeightGrid, weight_scales
from segquant.deploy.onnx_layer import why_not_onnx
from segquant.deploy.other_formats.layer_facts import is_e4m3, is_integer
from segquant.kernels.packed import why_not
from tests.unit.core.helpers import (
    CHANNEL,
    GROUP,
    TENSOR,
    TOKEN,
    correlated,
    generator,
    one,
    power_ratio,
    scheme,
    seen,
)

LLOYD = NumberFormat.lloyd_max
# Max 1960, table I: positive levels and the mean squared error; its last digit is not to be had.
PUBLISHED = {
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}
ALL_BITS = range(2, 9)


def distortion(levels: tuple[float, ...]) -> float:
    ends = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    return sum(
        quad(lambda z, x=x: (z - x) ** 2 * norm.pdf(z), low, high, epsabs=1e-13)[0]
        for x, (low, high) in zip(levels, pairwise(ends), strict=True)
    )


@pytest.mark.parametrize("num_bits", PUBLISHED)
def test_levels_and_errors_are_the_published_ones(num_bits: int) -> None:
    positive, error = PUBLISHED[num_bits]
    levels = lloyd_max_levels(num_bits)
    assert levels[len(levels) // 2 :] == pytest.approx(positive, rel=6e-4)
    assert distortion(levels) == pytest.approx(error, rel=6e-4)


@pytest.mark.parametrize("num_bits", ALL_BITS)
def test_each_level_is_the_mean_of_what_is_nearest_to_it(num_bits: int) -> None:
    levels = lloyd_max_levels(num_bits)
    assert len(levels) == 2**num_bits
    assert levels == tuple(-level for level in reversed(levels))
    ends = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    for x, (low, high) in zip(levels, pairwise(ends), strict=True):
        if x < 0:
            continue
        mass = norm.sf(low) - norm.sf(high)
        assert x == pytest.approx((norm.pdf(low) - norm.pdf(high)) / mass, rel=1e-7)
    if num_bits >= 6:  # Panter and Dite: D n^2 -> sqrt(3) pi / 2
        found = distortion(levels) * len(levels) ** 2
        assert found == pytest.approx(math.sqrt(3) * math.pi / 2, rel=0.07)


@pytest.mark.parametrize("num_bits", ALL_BITS)
def test_codes_are_the_nearest_levels_and_come_back(num_bits: int) -> None:
    grid = CodebookGrid(num_bits)
    x = 2 * torch.randn(500, generator=generator(0))
    levels = torch.tensor(lloyd_max_levels(num_bits))
    expected = levels[(x[:, None] - levels).abs().argmin(1)]
    found = grid.nearest_(x.clone())
    assert torch.equal(found, expected)
    codes = grid.store(levels)
    assert codes.tolist() == list(range(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1)))
    assert torch.equal(grid.restore(codes), levels)
    if num_bits <= 4:
        packed = pack_int4(codes[None])
        assert torch.equal(unpack_int4(packed, in_features=len(levels))[0], codes)
    assert (grid.quant_min, grid.quant_max) == pytest.approx(
        (float(-levels[-1]), float(levels[-1]))
    )


def coded(num_bits: int, granularity: Any, **more: Any) -> TensorScheme:
    return scheme(num_bits, granularity, number_format=LLOYD, **more)


def exact(x: Tensor, num_bits: int, size: int) -> Tensor:
    """Each run of `size` values over its root mean square, at the nearest level; float64."""
    levels = torch.tensor(lloyd_max_levels(num_bits), dtype=torch.float64)
    parts = x.double().reshape(x.shape[0], -1, size)
    power = parts.square().mean(-1, keepdim=True).sqrt()
    nearest = levels[((parts / power)[..., None] - levels).abs().argmin(-1)]
    return (nearest * power).flatten(1)


@pytest.mark.parametrize(
    ("granularities", "more", "size"),
    [((CHANNEL, TOKEN), {}, 32), ((GROUP, GROUP), {"group_size": 8}, 8)],
    ids=["rows", "groups"],
)
@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_a_layer_is_its_equation(
    num_bits: int, granularities: Any, more: dict[str, int], size: int
) -> None:
    how = Bits(
        name="t",
        weight=coded(num_bits, granularities[0], **more),
        activation=coded(num_bits, granularities[1], dynamic=True, **more),
    )
    quant = layer(how)
    x, linear = correlated(16, 32, seed=3), one(32, 24).linear
    with torch.no_grad():
        found = quant(x).double()
    expected = exact(x, num_bits, size) @ exact(linear.weight.detach(), num_bits, size).T
    assert power_ratio(found, expected + linear.bias.detach().double()) < 1e-9
    assert quant.spec.weight.describe().startswith(f"lloyd_max{num_bits} ")


def layer(how: Bits, recipe: LayerRecipe | None = None) -> QuantLinear:
    quant, _ = quantize_linear(
        one(32, 24).linear,
        name="linear",
        seen=seen(correlated(256, 32, seed=0)),
        shape=whole(in_features=32, out_features=24),
        bits=how,
        recipe=recipe or LayerRecipe(),
    )
    return quant


ROWS = Bits(name="t", weight=coded(4, CHANNEL), activation=coded(4, TOKEN, dynamic=True))


def test_gptq_rounds_to_levels_too() -> None:
    x, linear = correlated(256, 32, seed=0), one(32, 24).linear
    weights_alone = Bits(name="t", weight=coded(3, CHANNEL), activation=scheme(16, TENSOR))
    with torch.no_grad():
        by = [
            power_ratio(layer(weights_alone, LayerRecipe(rounding=how))(x), linear(x))
            for how in (Rounding.gptq, Rounding.rtn)
        ]
    assert by[0] < by[1]


def test_what_is_zero_stays_next_to_nothing() -> None:
    """No level is zero, so that the scale has to be: it was 1 for a row that reaches nothing."""
    rows = torch.zeros(3, 32)
    found = fake_quantize(
        rows,
        grid=ActivationGrid(scheme=ROWS.activation, blocks=(32,), dual=(False,)),
        static=None,
    )
    assert float(found.abs().max()) < 1e-28
    assert bool(found.isfinite().all())
    grid = WeightGrid(scheme=ROWS.weight, row_blocks=(3,), blocks=(32,))
    assert float(weight_scales(rows, grid=grid).scale.max()) < 1e-28


def test_unequal_blocks_have_scales_of_their_own() -> None:
    w = torch.randn(4, 10, generator=generator(1))
    grid = WeightGrid(scheme=coded(4, CHANNEL), row_blocks=(4,), blocks=(4, 6))
    expected = [part.square().mean(1).sqrt() for part in (w[:, :4], w[:, 4:])]
    torch.testing.assert_close(weight_scales(w, grid=grid).scale, torch.stack(expected, 1))


def test_it_is_near_the_codebook_of_a_unit_vectors_coordinates() -> None:
    """What the docstring says of d = 64: against Lloyd's iteration on the exact law."""
    for dimension, more in ((32, 0.017), (64, 0.0043)):
        z = np.linspace(-math.sqrt(dimension), math.sqrt(dimension), 20001)
        law = (1 - z**2 / dimension).clip(0) ** ((dimension - 3) / 2)

        def error(levels: np.ndarray, z: np.ndarray = z, law: np.ndarray = law) -> float:
            at = np.searchsorted((levels[1:] + levels[:-1]) / 2, z)
            return float(((z - levels[at]) ** 2 * law).sum())

        normal = levels = np.array(lloyd_max_levels(4))
        for _ in range(500):
            at = np.searchsorted((levels[1:] + levels[:-1]) / 2, z)
            levels = np.bincount(at, law * z) / np.bincount(at, law)
        assert error(normal) / error(levels) - 1 == pytest.approx(more, rel=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 16}, "use one of"),
        ({"num_bits": 9}, "use one of"),
        ({"symmetric": False}, "its levels are symmetric"),
        ({"granularity": TENSOR}, "root mean square of a row"),
        ({"range_rule": "mse"}, "set range_rule=amax"),
    ],
    ids=str,
)
def test_schemes_without_a_codebook_are_named(change: dict[str, Any], words: str) -> None:
    given = {"num_bits": 4, "granularity": CHANNEL, "number_format": LLOYD} | change
    with pytest.raises(ValueError) as caught:
        TensorScheme(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dual_scale_kernels_and_files_say_why_not() -> None:
    assert "lloyd_max" in (no_dual_scale(ROWS.activation) or "")
    quant = layer(ROWS)
    assert why_not(quant) == "weights in lloyd_max"
    assert (why_not_onnx(quant) or "").startswith("weights in lloyd_max")
    assert not is_integer(quant)
    assert not is_e4m3(quant)
