"""QuantLinear: segments, DualScale, and being a module like any other."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from segquant.core.layer import QuantizedLayer, quantize_linear
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.recipe import LayerRecipe
from segquant.core.schemes import Bits
from segquant.core.segments import LayerShape, whole
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from tests.unit.core.helpers import (
    GROUP,
    One,
    bits,
    correlated,
    generator,
    one,
    power_ratio,
    scheme,
    seen,
)

PLAIN = LayerRecipe()
SMOOTH = LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.fixed, alpha=0.5))
SEARCH = LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.search))
FULL = LayerRecipe(
    smoothing=SmoothingSettings(mode=SmoothingMode.fixed),
    low_rank=LowRankSettings(rank=2),
    dual_scale=True,
)


def make(
    model: One,
    x: Tensor,
    *,
    shape: LayerShape | None = None,
    how: Bits | None = None,
    recipe: LayerRecipe = PLAIN,
) -> tuple[QuantLinear, QuantizedLayer]:
    linear = model.linear
    return quantize_linear(
        linear,
        name="linear",
        seen=seen(x),
        shape=shape or whole(in_features=linear.in_features, out_features=linear.out_features),
        bits=how or bits(),
        recipe=recipe,
    )


def cut(output: tuple[int, ...], inputs: tuple[int, ...], *one_sided: bool) -> LayerShape:
    return LayerShape(output=output, input=inputs, one_sided=one_sided or (False,) * len(inputs))


def test_per_tensor_static_against_float64() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, entry = make(model, x)
    wide, w = x.double(), model.linear.weight.detach().double()
    step_x, step_w = wide.abs().max() / 127, w.abs().max() / 127
    exact = ((wide / step_x).round() * step_x) @ ((w / step_w).round() * step_w).T
    exact = exact + model.linear.bias.detach().double()
    torch.testing.assert_close(quant(x).double(), exact, rtol=1e-5, atol=1e-5)
    assert entry.relative_error == pytest.approx(
        power_ratio(exact - model.linear.bias, model(x) - model.linear.bias), rel=1e-3
    )


def test_unequal_input_segments_against_float64() -> None:
    """Y is the sum over segments, each with its own steps; the authors' code aborts here."""
    x = torch.cat(
        [correlated(64, 5, seed=1), 20 * torch.nn.functional.gelu(correlated(64, 11, seed=2))], 1
    )
    model = one(16, 6, bias=False)
    quant, entry = make(
        model,
        x,
        shape=cut((6,), (5, 11), False, True),
        recipe=LayerRecipe(dual_scale=True),
    )
    exact = torch.zeros(64, 6, dtype=torch.float64)
    for at, dual in ((slice(0, 5), False), (slice(5, 16), True)):
        part, w = x[:, at].double(), model.linear.weight.detach()[:, at].double()
        above = part.max() / 127 if dual else part.abs().max() / 127
        below = -part.min() / 128 if dual else above
        step = torch.where(part < 0, below, above)
        step_w = w.abs().max() / 127
        exact += ((part / step).round() * step) @ ((w / step_w).round() * step_w).T
    torch.testing.assert_close(quant(x).double(), exact, rtol=1e-5, atol=1e-4)
    assert entry.dual_scale == [False, True]
    assert entry.input_segments == [5, 11]
    uncut, _ = make(model, x)
    assert power_ratio(quant(x), model(x)) < power_ratio(uncut(x), model(x))


def test_unequal_output_segments_have_their_own_weight_scale() -> None:
    model, x = one(12, 9), correlated(64, 12, seed=0)
    model.linear.weight.data[:3] *= 40
    quant, _ = make(model, x, shape=cut((3, 6), (12,)))
    uncut, _ = make(model, x)
    expected = torch.stack(
        [model.linear.weight[:3].abs().max(), model.linear.weight[3:].abs().max()]
    )
    torch.testing.assert_close(quant.weight_scale[:, 0], expected / 127)
    assert power_ratio(quant(x)[:, 3:], model(x)[:, 3:]) < power_ratio(
        uncut(x)[:, 3:], model(x)[:, 3:]
    )


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("recipe", [PLAIN, LayerRecipe(low_rank=LowRankSettings(rank=2))])
def test_segments_of_equal_scale_equal_the_unsplit_layer(fine: bool, recipe: LayerRecipe) -> None:
    model, x = one(8, 6), correlated(64, 8, seed=0)
    # Every segment reaches the same extremes, in the weight, and in every row of the input.
    x[:, ::4] = 9.0
    model.linear.weight.data = torch.rand(6, 8, generator=generator(0))
    model.linear.weight.data[:, ::4] = 1.5
    how = bits(8, 8, fine=fine)
    if recipe.low_rank.rank:
        split, _ = make(model, x, shape=cut((3, 3), (8,)), how=bits(8, 8, fine=True), recipe=recipe)
        plain, _ = make(model, x, how=bits(8, 8, fine=True), recipe=recipe)
    else:
        split, _ = make(model, x, shape=cut((3, 3), (4, 4)), how=how, recipe=recipe)
        plain, _ = make(model, x, how=how, recipe=recipe)
    torch.testing.assert_close(split(x), plain(x), rtol=1e-6, atol=1e-6)


def test_output_segments_are_said_to_be_a_no_op_where_they_are() -> None:
    model, x = one(12, 9), correlated(64, 12, seed=0)
    shape = cut((3, 6), (12,))
    quant, entry = make(model, x, shape=shape, how=bits(4, 8, fine=True))
    plain, _ = make(model, x, how=bits(4, 8, fine=True))
    assert torch.equal(quant(x), plain(x))
    assert entry.notes == ["output segments are a no-op: per_channel weights, no smoothing"]
    _, smoothed = make(model, x, shape=shape, how=bits(4, 8, fine=True), recipe=SMOOTH)
    assert smoothed.notes == []
    assert smoothed.smoothing_vectors == 2


def test_equal_smoothing_vectors_share_one_reading() -> None:
    model, x = one(12, 9), correlated(64, 12, seed=0)
    recipe = LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.fixed, alpha=1.0))
    quant, entry = make(model, x, shape=cut((3, 6), (12,)), recipe=recipe)
    assert entry.smoothing_vectors == 1
    assert quant.spec.runs() == ((0, 0, 9),)


def test_segments_far_apart_with_one_vector_keep_their_place() -> None:
    model, x = one(12, 9), correlated(200, 12, seed=0, spread=1.0)
    model.linear.weight.data[6:] = model.linear.weight.data[:3]
    quant, entry = make(model, x, shape=cut((3, 3, 3), (12,)), recipe=SMOOTH)
    assert entry.smoothing_vectors == 2
    assert quant.spec.smoothing_groups == (0, 1, 0)
    assert power_ratio(quant(x), model(x)) < 1e-3
    torch.testing.assert_close(
        quant(x)[:, 6:] - model.linear.bias[6:], quant(x)[:, :3] - model.linear.bias[:3]
    )


@pytest.mark.parametrize("how", [bits(8, 8), bits(4, 8, fine=True), bits(4, 4, symmetric=False)])
@pytest.mark.parametrize("recipe", [PLAIN, SMOOTH, FULL])
def test_the_input_is_never_written(how: Bits, recipe: LayerRecipe) -> None:
    """In the authors' code quantized values were written into the caller's activation."""
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, how=how, recipe=recipe, shape=cut((3, 5), (4, 8), True, False))
    before = x.clone()
    first = quant(x)
    assert torch.equal(x, before)
    assert torch.equal(quant(x), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_keeps_scales_and_comes_back_bit_equal(dtype: torch.dtype) -> None:
    """The authors' layers ignore .half() and .to(); half-precision scales would overflow."""
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, recipe=FULL, how=bits(4, 8))
    expected = quant(x)
    half = copy.deepcopy(quant).to(dtype)
    assert half.weight_scale.dtype == torch.float32
    assert half.activation_scale is not None
    assert half.activation_scale.dtype == torch.float32
    found = half(x.to(dtype))
    assert found.dtype == dtype
    assert power_ratio(found.float(), expected) < 1e-3
    half.bias = quant.bias
    assert torch.equal(half.to(torch.float32)(x), expected)


def test_a_small_activation_survives_in_half() -> None:
    """In the authors' code a row whose largest value is below 0.0019 became zero or NaN."""
    model, x = one(12, 8, bias=False), correlated(64, 12, seed=0)
    x = x / x.abs().amax(1, keepdim=True) * 1.5e-3
    x[0] = 0
    model.half()
    quant, _ = make(model, x, how=bits(8, 8, fine=True))
    found = quant(x.half()).float()
    exact = x.half().double() @ model.linear.weight.double().T
    assert bool(found.isfinite().all())
    assert power_ratio(found, exact.float()) < 1e-3


@pytest.mark.parametrize("recipe", [PLAIN, FULL])
@pytest.mark.parametrize("num_bits", [4, 8])
def test_state_dict_holds_all_of_it(recipe: LayerRecipe, num_bits: int) -> None:
    model, x = one(13, 8), correlated(64, 13, seed=0)
    quant, _ = make(model, x, recipe=recipe, how=bits(num_bits, 8))
    buffer = io.BytesIO()
    torch.save(quant.state_dict(), buffer)
    buffer.seek(0)
    fresh = QuantLinear(quant.spec, device="cpu", dtype=torch.float32)
    fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    assert torch.equal(fresh(x), quant(x))
    width = 7 if num_bits == 4 else 13
    assert quant.state_dict()["codes"].shape == (8, width)
    assert "dense_OI" not in quant.state_dict()


def test_the_effective_weight_is_near_the_original() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, recipe=FULL, shape=cut((3, 5), (4, 8), True, False))
    assert power_ratio(quant.weight, model.linear.weight) < 1e-3
    assert quant.weight.dtype == torch.float32


def test_any_batch_and_length_run() -> None:
    """The authors' static scales per token tie a model to its calibration's batch."""
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, how=bits(4, 4, fine=True), recipe=SMOOTH)
    assert quant(torch.randn(2, 3, 5, 12)).shape == (2, 3, 5, 8)
    assert quant(x[:1]).shape == (1, 8)
    torch.testing.assert_close(quant(x)[:1], quant(x[:1]))


def test_groups_along_the_input() -> None:
    model, x = one(16, 8), correlated(64, 16, seed=0, spread=1.0)
    how = Bits(
        name="g",
        weight=scheme(4, GROUP, group_size=4),
        activation=scheme(8, GROUP, group_size=4, dynamic=True),
    )
    quant, _ = make(model, x, how=how)
    assert quant.weight_scale.shape == (8, 4)
    coarse, _ = make(model, x, how=bits(4, 8, fine=True))
    assert power_ratio(quant(x), model(x)) < power_ratio(coarse(x), model(x))
    # Segments that groups of this size cannot cover are dropped, and that is said.
    _, entry = make(model, x, how=how, shape=cut((8,), (6, 10)))
    assert entry.input_segments == [16]
    assert "not multiples of group_size=4" in entry.notes[0]


def test_a_group_size_that_does_not_fit_names_the_layer() -> None:
    model, x = one(10, 8), correlated(64, 10, seed=0)
    how = Bits(name="g", weight=scheme(4, GROUP, group_size=4), activation=bits(8, 16).activation)
    with pytest.raises(ValueError, match="linear: in_features=10 is not a multiple"):
        make(model, x, how=how)


def test_dual_scale_is_said_to_be_a_no_op_where_it_is() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    shape = cut((8,), (12,), True)
    for how, why in ((bits(8, 16), "16 bit"), (bits(8, 8, symmetric=False), "asymmetric")):
        _, entry = make(model, x, shape=shape, how=how, recipe=LayerRecipe(dual_scale=True))
        assert why in entry.notes[0]
        assert entry.dual_scale == [False]


def test_broken_weights_are_refused_by_name() -> None:
    model, x = one(4, 4), correlated(8, 4, seed=0)
    model.linear.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="linear: its weight holds NaN or infinity"):
        make(model, x)


def test_compiles_to_one_graph() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, recipe=FULL, shape=cut((3, 5), (4, 8), True, False))
    compiled = torch.compile(quant, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), quant(x))


def test_exports() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, recipe=SMOOTH)
    program = torch.export.export(nn.Sequential(quant), (x,), strict=False)
    torch.testing.assert_close(program.module()(x), quant(x))


def test_moves_to_the_meta_device_and_says_what_it_is() -> None:
    model, x = one(12, 8), correlated(64, 12, seed=0)
    quant, _ = make(model, x, recipe=FULL, shape=cut((3, 5), (4, 8), True, False))
    text = repr(quant)
    for part in ("12 -> 8", "int8 per_tensor static", "(3, 5)", "(4, 8)", "dual scale", "rank 2"):
        assert part in text
    assert quant.to("meta").weight_scale.is_meta
