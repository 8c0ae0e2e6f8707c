"""Another order of an input's channels: exact in float, counted, and refused where it cannot be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from segquant.core.costs import stored_bits
from segquant.core.layer_plan import LayerPlan, quantize_planned
from segquant.core.linear import QuantLinear
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.schemes import Bits
from segquant.core.segments import LayerShape
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from segquant.core.transforms import InputTransform, hadamard_blocks
from segquant.deploy.other_formats.layer_facts import Beyond, beyond
from segquant.kernels.packed import why_not
from tests.unit.core.helpers import (
    GROUP,
    bits,
    correlated,
    generator,
    one,
    power_ratio,
    scheme,
    seen,
)

FEATURES = 32
ORDER = torch.randperm(FEATURES, generator=generator(4)).int()
GROUPED = Bits(
    name="grouped",
    weight=scheme(4, GROUP, group_size=8),
    activation=scheme(4, GROUP, group_size=8, dynamic=True),
)


def made(transform: InputTransform | None, recipe: LayerRecipe, how: Bits = GROUPED) -> QuantLinear:
    quant, entry = quantize_planned(
        one(FEATURES, 24).linear,
        name="linear",
        seen=seen(correlated(256, FEATURES, seed=0, spread=1.0)),
        shape=LayerShape(output=(24,), input=(FEATURES,), one_sided=(False,)),
        plan=LayerPlan(transform=transform),
        bits=how,
        recipe=recipe,
    )
    assert entry.relative_error < 1
    return quant


def run(quant: QuantLinear, x_TI: Tensor) -> Tensor:
    with torch.no_grad():
        return quant(x_TI).double()


def test_groups_are_of_the_channels_in_their_new_order() -> None:
    quant = made(InputTransform(permutation_I=ORDER), LayerRecipe())
    x, linear = correlated(16, FEATURES, seed=5), one(FEATURES, 24).linear
    order = ORDER.long()

    def rounded(values: Tensor) -> Tensor:
        parts = values.double()[:, order].reshape(values.shape[0], -1, 8)
        step = parts.abs().amax(-1, keepdim=True) / 7
        return ((parts / step).round() * step).flatten(1)

    expected = rounded(x) @ rounded(linear.weight.detach()).T + linear.bias.detach().double()
    assert power_ratio(run(quant, x), expected) < 1e-9
    assert power_ratio(run(made(None, LayerRecipe()), x), expected) > 1e-4


def test_an_order_changes_nothing_where_all_channels_share_a_scale() -> None:
    how, x = bits(4, 4, fine=True), correlated(16, FEATURES, seed=5)
    reordered = made(InputTransform(permutation_I=ORDER), LayerRecipe(), how)
    torch.testing.assert_close(
        run(reordered, x), run(made(None, LayerRecipe(), how), x), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "recipe",
    [
        LayerRecipe(rounding=Rounding.gptq),
        LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.fixed)),
        LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.search)),
    ],
    ids=["gptq", "smoothed", "searched"],
)
def test_a_reordered_layer_is_the_layer_of_reordered_channels(recipe: LayerRecipe) -> None:
    """Statistics, weight and input move together, in whatever is made of them."""
    order = ORDER.long()
    x_TI = correlated(256, FEATURES, seed=0, spread=1.0)
    linear = one(FEATURES, 24).linear
    with torch.no_grad():
        linear.weight.copy_(linear.weight[:, order])
    by_hand, _ = quantize_planned(
        linear,
        name="linear",
        seen=seen(x_TI[:, order]),
        shape=LayerShape(output=(24,), input=(FEATURES,), one_sided=(False,)),
        plan=LayerPlan(),
        bits=GROUPED,
        recipe=recipe,
    )
    x = correlated(16, FEATURES, seed=5)
    found = made(InputTransform(permutation_I=ORDER), recipe)
    assert torch.equal(found.codes, by_hand.codes)
    assert torch.equal(run(found, x), run(by_hand, x[:, order]))


def test_a_transform_of_statistics_is_the_statistics_of_the_transformed() -> None:
    x = correlated(64, FEATURES, seed=1, spread=1.0)
    given = seen(x)
    given = replace(given, part_low_PI=torch.stack([given.low_I] * 2))
    given = replace(given, part_high_PI=torch.stack([given.high_I] * 2))
    scale = torch.logspace(-1, 1, FEATURES)
    plain = InputTransform(scale_I=scale, permutation_I=ORDER)
    blocks = hadamard_blocks(FEATURES, block_size=16, generator=None, regular=True)
    for transform in (plain, replace(plain, rotation_NBB=blocks, hadamard=True)):
        found, expected = transform.of_statistics(given), seen(transform.of_input(x))
        torch.testing.assert_close(found.gram_II, expected.gram_II, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.low_I, expected.low_I)
        torch.testing.assert_close(found.high_I, expected.high_I)
        turned = transform.rotation_NBB is not None
        for part in (found.part_low_PI, found.part_high_PI):
            assert (part is None) == turned
    parts = plain.of_statistics(given).part_low_PI
    assert parts is not None
    torch.testing.assert_close(parts[1], plain.of_statistics(given).low_I)


def test_an_order_is_counted_and_said() -> None:
    plain, reordered = (
        made(None, LayerRecipe()),
        made(InputTransform(permutation_I=ORDER), LayerRecipe()),
    )
    entry = type("E", (), {"low_rank_parameters": [0, 0]})()
    assert stored_bits(reordered, entry) - stored_bits(plain, entry) == FEATURES * 5
    assert "channels reordered" in repr(reordered)
    assert reordered.input_permutation is not None
    assert reordered.input_permutation.dtype == torch.int32
    assert reordered.half().input_permutation.dtype == torch.int32


def test_kernels_and_other_formats_say_that_they_have_no_order() -> None:
    how = bits(8, 8, fine=True)
    quant = made(InputTransform(permutation_I=ORDER), LayerRecipe(), how)
    assert "reordered" in (why_not(quant) or "")
    assert beyond(quant) == [Beyond.order.value]


def test_a_cut_input_keeps_its_order() -> None:
    with pytest.raises(ValueError, match=r"linear: its input is cut into 2 segments"):
        quantize_planned(
            one(FEATURES, 24).linear,
            name="linear",
            seen=seen(correlated(64, FEATURES, seed=0)),
            shape=LayerShape(output=(24,), input=(16, 16), one_sided=(False, False)),
            plan=LayerPlan(transform=InputTransform(permutation_I=ORDER)),
            bits=GROUPED,
            recipe=LayerRecipe(),
        )
