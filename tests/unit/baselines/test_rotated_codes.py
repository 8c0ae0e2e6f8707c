"""ConvRot, OrbitQuant, PermuQuant: each against its equation in float64, and its settings."""

import copy
import math
from dataclasses import asdict, replace
from functools import cache, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor, nn

from baselines.convrot import ConvRot
from baselines.orbitquant import OrbitQuant
from baselines.permuquant import PermuQuant
from baselines.quarot import layer_generator
from baselines.rtn import RoundToNearest
from segquant.core import Bits, Calibration, NumberFormat, Rounding, TensorScheme
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.lloyd_max import lloyd_max_levels
from segquant.core.transforms import regular_block, regular_hadamard
from tests.unit.baselines.timed import Timed, calibrated, calls
from tests.unit.core.helpers import GROUP, bits, correlated, power_ratio, scheme

FEATURES = 32
TOKEN = bits(4, 4, fine=True)
FOUR = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2


@cache
def setting(folder: Path) -> tuple[Timed, Calibration]:
    return calibrated(folder, features=FEATURES)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Timed, Calibration]:
    return setting(tmp_path_factory.mktemp("calls"))


def quantized(method: Any, how: Bits, given: tuple[Timed, Calibration]) -> tuple[Timed, Any]:
    model, calibration = given
    made = copy.deepcopy(model)
    seen = method.needs().of(calibration)
    return made, method.quantize(made, calibration=seen, bits=how)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x, timestep)[0] for x, timestep in calls(FEATURES)])


def first_layer(made: Timed) -> tuple[Tensor, Tensor, Tensor]:
    """The first layer's output on rows of its own [T, O], those rows, and its bias."""
    x = correlated(64, FEATURES, seed=77).double()
    with torch.no_grad():
        return made.first(x.float()).double(), x, made.first.bias.double()


def token_layer(x: Tensor, w: Tensor, *, top_x: int, top_w: int) -> Tensor:
    """Per-channel weights and per-token inputs, to nearest, float64."""
    step_w, step_x = w.abs().amax(1, keepdim=True) / top_w, x.abs().amax(1, keepdim=True) / top_x
    return ((x / step_x).round() * step_x) @ ((w / step_w).round() * step_w).T


# regular Hadamard matrices -------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_a_regular_matrix_has_equal_sums_and_is_its_own_inverse(power: int) -> None:
    size = 4**power
    h = regular_hadamard(size)
    assert h.dtype == torch.float32
    exact = reduce(torch.kron, [FOUR] * power)
    assert torch.equal(h.double(), exact)
    assert torch.equal(exact @ exact, torch.eye(size).double())
    for axis in (0, 1):
        assert bool((h.sum(axis) == 1).all())
        assert int(torch.from_numpy(scipy_hadamard(size)).sum(axis).max()) == size
    assert bool((h.abs() == 1 / math.sqrt(size)).all())


def test_what_a_row_has_in_common_stays_spread() -> None:
    """The row of ones is the worst for Sylvester's matrix, and nothing to a regular one."""
    ones = torch.ones(64)
    assert float((ones @ regular_hadamard(64)).abs().max()) == 1
    assert float((ones @ torch.from_numpy(scipy_hadamard(64)).float() / 8).abs().max()) == 8


def test_blocks_are_the_widest_power_of_four_that_divides() -> None:
    widths = (3072, 160, 96, 64, 320, 12, 6, 7)
    assert [regular_block(n, largest=256) for n in widths] == [256, 16, 16, 64, 64, 4, 0, 0]
    assert [regular_block(n, largest=16) for n in widths] == [16, 16, 16, 16, 16, 4, 0, 0]


# ConvRot -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group_size", "used"), [(4, 4), (16, 16), (256, 16)])
@pytest.mark.parametrize("widths", [(8, 8), (4, 4)], ids=str)
def test_convrot_is_a_regular_hadamard_product(
    given: Any, group_size: int, used: int, widths: tuple[int, int]
) -> None:
    how = bits(*widths, fine=True)
    made, report = quantized(ConvRot(group_size=group_size), how, given)
    block = FOUR if used == 4 else torch.kron(FOUR, FOUR)
    h = torch.block_diag(*[block] * (FEATURES // used))
    found, x, bias = first_layer(made)
    w = given[0].first.weight.detach().double()
    top_w, top_x = (2 ** (n - 1) - 1 for n in widths)
    expected = token_layer(x @ h, w @ h.T, top_x=top_x, top_w=top_w) + bias
    assert power_ratio(found, expected) < 1e-6
    (note,) = report.layers_quantized[0]["notes"]
    assert note.startswith(f"rotated in groups of {used}")
    assert ("does not divide 32" in note) == (group_size == 256)


def test_a_rotation_without_signs_stores_nothing(given: Any) -> None:
    def stored(**settings: Any) -> float:
        _, report = quantized(ConvRot(**settings), TOKEN, given)
        return report.effective_bits_per_weight

    weights = sum(p.numel() for p in given[0].parameters() if p.dim() == 2)
    inputs, outputs = 2 * FEATURES + 2 * FEATURES, FEATURES + 2 * FEATURES + FEATURES
    assert stored() == pytest.approx(4 + 32 * outputs / weights)
    assert stored(random_signs=True) - stored() == pytest.approx(inputs / weights)
    _, report = quantized(ConvRot(), TOKEN, given)
    additions = 2 * FEATURES * math.log2(16) + 2 * FEATURES * math.log2(64)
    assert report.extra_macs_fraction == pytest.approx(additions / weights)


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"group_size": 4}, {}),
        ({"random_signs": True}, {}),
        ({"seed": 1}, {"random_signs": True}),
        ({"rounding": Rounding.gptq}, {}),
        ({"damping": 1.0}, {"rounding": Rounding.gptq}),
    ],
    ids=str,
)
def test_each_setting_of_convrot_reaches_the_computation(
    given: Any, change: dict[str, Any], base: dict[str, Any]
) -> None:
    before = outputs(quantized(ConvRot(**base), TOKEN, given)[0])
    after = outputs(quantized(ConvRot(**{**base, **change}), TOKEN, given)[0])
    assert not torch.equal(before, after)


def test_convrot_needs_no_data_but_for_what_is_asked_of_it(given: Any) -> None:
    needs = ConvRot(sample_rows=7).needs()
    assert (needs.gram, needs.rows) == (False, 7)
    assert ConvRot(rounding=Rounding.gptq).needs().gram
    small, large = (
        outputs(quantized(ConvRot(gptq_block_size=n, rounding=Rounding.gptq), TOKEN, given)[0])
        for n in (4, 128)
    )
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("group_size", [0, 2, 8, 100, 128])
def test_groups_that_have_no_regular_matrix_are_named(group_size: int) -> None:
    with pytest.raises(ValueError, match=rf"group_size={group_size}; give a power of four"):
        ConvRot(group_size=group_size)


def test_static_inputs_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="static activation scales"):
        quantized(ConvRot(), bits(8, 8), given)


# OrbitQuant ----------------------------------------------------------------------------------


def on_codebook(x: Tensor, num_bits: int) -> Tensor:
    """Norm and direction: the direction's coordinates at the nearest levels for N(0, 1)."""
    levels = torch.tensor(lloyd_max_levels(num_bits), dtype=torch.float64)
    norms, root = x.norm(dim=1, keepdim=True), math.sqrt(x.shape[1])
    nearest = (root * x / norms)[..., None] - levels
    return norms / root * levels[nearest.abs().argmin(-1)]


ALL_CODED = OrbitQuant(modulation_in_16_bit=False, seed=0)


@pytest.mark.parametrize("widths", [(4, 4), (2, 4), (3, 8)], ids=str)
@pytest.mark.parametrize("block_size", [8, 1024])
def test_orbitquant_is_norms_times_levels_of_a_rotated_direction(
    given: Any, widths: tuple[int, int], block_size: int
) -> None:
    method = replace(ALL_CODED, block_size=block_size)
    made, _ = quantized(method, bits(*widths, fine=True), given)
    size = min(block_size, FEATURES)
    generator = layer_generator(f"{FEATURES} input features", seed=0)
    order = torch.randperm(FEATURES, generator=generator)
    signs = torch.randint(0, 2, (FEATURES,), generator=generator).double() * 2 - 1
    h = torch.from_numpy(scipy_hadamard(size)).double() / math.sqrt(size)
    p = torch.eye(FEATURES).double()[:, order]
    r = p @ torch.diag(signs) @ torch.block_diag(*[h] * (FEATURES // size))
    torch.testing.assert_close(r @ r.T, torch.eye(FEATURES).double())
    found, x, bias = first_layer(made)
    w = given[0].first.weight.detach().double()
    expected = on_codebook(x @ r, widths[1]) @ on_codebook(w @ r, widths[0]).T + bias
    assert power_ratio(found, expected) < 1e-6


def test_layers_of_one_width_share_a_rotation_of_their_own_seed(given: Any) -> None:
    made, report = quantized(ALL_CODED, TOKEN, given)
    assert torch.equal(made.first.input_permutation, made.block.up.input_permutation)
    assert torch.equal(made.first.input_rotation, made.block.up.input_rotation)
    assert sorted(made.first.input_permutation.tolist()) == list(range(FEATURES))
    assert len(made.block.down.input_permutation) == 2 * FEATURES
    weights = sum(p.numel() for p in given[0].parameters() if p.dim() == 2)
    rows, stored = 4 * FEATURES, 2 * FEATURES * (5 + 1) + 2 * FEATURES * (6 + 1)
    expected = 4 + (32 * rows + stored) / weights
    assert report.effective_bits_per_weight == pytest.approx(expected)


def test_orbitquant_says_which_codes_it_replaced(given: Any) -> None:
    _, report = quantized(ALL_CODED, TOKEN, given)
    said = " ".join(report.elements)
    assert "codebooks for weights in place of int4 per_channel" in said
    assert "codebooks for inputs in place of int4 per_token dynamic" in said
    assert "modulation with inputs in 16 bit" in report.left_out
    assert report.layers_quantized[0]["weight"].startswith("lloyd_max4")
    _, report = quantized(ALL_CODED, bits(4, 16, fine=True), given)
    assert [one for one in report.left_out if one.startswith("codebooks for inputs: ")]


def test_the_modulations_weights_are_integers_in_groups_and_its_input_stays(given: Any) -> None:
    layer = SimpleNamespace(
        output_segments=(), input_segments=(), head_segments=(), conditioning="modulation"
    )
    model, calibration = given
    graph = {"first": layer, "block.down": layer}
    made, report = quantized(OrbitQuant(), TOKEN, (model, replace(calibration, graph=graph)))
    kinds = {
        entry["name"]: (entry["weight"], entry["activation"]) for entry in report.layers_quantized
    }
    assert kinds == {
        "first": ("int4 per_channel static", "16 bit"),
        "block.up": ("lloyd_max4 per_channel static", "lloyd_max4 per_token dynamic"),
        "block.down": ("int4 per_group 64 static", "16 bit"),
    }
    assert made.block.down.transform is None
    assert made.block.up.transform is not None
    assert "modulation by integer weights alone (2 of 3 Linears)" in report.elements
    w = model.block.down.weight.detach()
    step = w.abs().amax(1, keepdim=True) / 7
    torch.testing.assert_close(made.block.down.weight, (w / step).round() * step)
    assert "64 does not divide 32" in report.layers_quantized[0]["notes"][0]
    with pytest.raises(ValueError, match=r"needs the denoiser's static graph"):
        quantized(OrbitQuant(), TOKEN, given)


@pytest.mark.parametrize("change", [{"block_size": 4}, {"seed": 1}], ids=str)
def test_each_setting_of_orbitquant_reaches_the_computation(
    given: Any, change: dict[str, Any]
) -> None:
    before = outputs(quantized(ALL_CODED, TOKEN, given)[0])
    after = outputs(quantized(replace(ALL_CODED, **change), TOKEN, given)[0])
    assert not torch.equal(before, after)
    assert OrbitQuant(sample_rows=9).needs().rows == 9
    assert OrbitQuant().needs().graph != ALL_CODED.needs().graph


def test_draws_of_the_calibration_are_draws_of_orbitquants_rotation(given: Any) -> None:
    model, calibration = given
    drawn = replace(ALL_CODED, seed=None)

    def made(method: OrbitQuant, draw: str) -> Tensor:
        return outputs(quantized(method, TOKEN, (model, replace(calibration, draw=draw)))[0])

    assert torch.equal(made(drawn, "a"), made(drawn, "a"))
    assert not torch.equal(made(drawn, "a"), made(drawn, "b"))
    assert torch.equal(made(ALL_CODED, "a"), made(ALL_CODED, "b"))


FP8 = TensorScheme(num_bits=8, number_format=NumberFormat.fp8_e4m3)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (bits(16, 16), "leaves them in 16 bit"),
        (bits(8, 8), "weights have one scale per tensor"),
        (Bits(name="t", weight=FP8, activation=FP8), "weights are fp8_e4m3"),
        (bits(4, 4, fine=True, symmetric=False), "are asymmetric"),
        (replace(TOKEN, activation=bits(4, 8).activation), "activations have one scale per tensor"),
        (replace(TOKEN, mixed_bits=[8], mixed_budget=5.0), "chooses widths"),
    ],
    ids=str,
)
def test_bits_that_orbitquant_has_no_codebook_for(given: Any, how: Bits, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        quantized(ALL_CODED, how, given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# PermuQuant ----------------------------------------------------------------------------------

GROUPED = Bits(
    name="grouped",
    weight=scheme(4, GROUP, group_size=8),
    activation=scheme(4, GROUP, group_size=8, dynamic=True),
)


def grouped(x: Tensor) -> Tensor:
    parts = x.reshape(x.shape[0], -1, 8)
    step = parts.abs().amax(-1, keepdim=True) / 7
    return ((parts / step).round() * step).flatten(1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_permuquant_sorts_by_the_joint_moment_and_takes_what_lowers_the_error(
    given: Any, alpha: float
) -> None:
    made, report = quantized(PermuQuant(alpha=alpha), GROUPED, given)
    taken = 0
    for entry in report.layers_quantized:
        name = entry["name"]
        w = given[0].get_submodule(name).weight.detach().double()
        x = given[1].statistics[name].sample_TI[:512].double()
        half = len(x) // 2
        score = x[:half].square().mean(0) ** alpha * w.square().mean(0) ** (1 - alpha)
        order = torch.argsort(-score, stable=True)
        exact = x[half:] @ w.T
        errors = [
            float((grouped(x[half:][:, o]) @ grouped(w[:, o]).T - exact).square().sum())
            for o in (torch.arange(len(order)), order)
        ]
        quant = made.get_submodule(name)
        if errors[1] < errors[0]:
            assert torch.equal(quant.input_permutation.long(), order)
            taken += 1
        else:
            assert quant.input_permutation is None
        said = f"sorted, its error is {errors[1] / errors[0]:.3g} of what it is in order"
        assert entry["notes"][0].endswith(said)
    names = [one for one in report.elements if one.startswith("channels sorted")]
    assert len(names) == (taken > 0)
    if 0 < taken < 3:
        assert f"({taken} of 3 Linears)" in names[0]


def test_an_order_that_helps_no_layer_is_left_out(given: Any) -> None:
    made, report = quantized(PermuQuant(threshold=0.99), GROUPED, given)
    assert made.first.input_permutation is None
    assert [one for one in report.left_out if "it falls in no layer" in one]
    plain, _ = quantized(RoundToNearest(), GROUPED, given)
    assert torch.equal(outputs(made), outputs(plain))


def test_channels_of_one_group_have_no_order(given: Any) -> None:
    """Sorted within a group, the error differed in its last digits, and was taken for lower."""
    wide = replace(
        GROUPED,
        weight=scheme(4, GROUP, group_size=FEATURES),
        activation=scheme(4, GROUP, group_size=FEATURES, dynamic=True),
    )
    _, report = quantized(PermuQuant(), wide, given)
    notes = {entry["name"]: entry["notes"][0] for entry in report.layers_quantized}
    assert notes["first"] == notes["block.up"] == "channels stay in order: they are one group"
    assert "of what it is in order" in notes["block.down"]


@pytest.mark.parametrize(
    ("change", "base"),
    [
        ({"alpha": 1.0}, {}),
        ({"threshold": 0.99}, {}),
        ({"rounding": Rounding.gptq}, {}),
        ({"damping": 1.0}, {"rounding": Rounding.gptq}),
        ({"sample_rows": 4}, {}),
    ],
    ids=str,
)
def test_each_setting_of_permuquant_reaches_the_computation(
    given: Any, change: dict[str, Any], base: dict[str, Any]
) -> None:
    before = outputs(quantized(PermuQuant(**base), GROUPED, given)[0])
    after = outputs(quantized(PermuQuant(**{**base, **change}), GROUPED, given)[0])
    assert not torch.equal(before, after)


def test_permuquant_by_gptq_is_the_same_in_any_block_of_columns(given: Any) -> None:
    small, large = (
        outputs(quantized(PermuQuant(gptq_block_size=n, rounding=Rounding.gptq), GROUPED, given)[0])
        for n in (4, 128)
    )
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("name", ["alpha", "threshold", "sample_rows"])
def test_permuquants_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=-1; give"):
        PermuQuant(**{name: -1})
    with pytest.raises(ValueError, match=r"block_size=6; give a power of two"):
        OrbitQuant(block_size=6)


def test_bits_without_groups_have_no_use_for_an_order(given: Any) -> None:
    for how in (TOKEN, bits(8, 8), bits(16, 16)):
        assert "no groups of channels" in (PermuQuant().unsupported(how) or "")
    half = replace(GROUPED, activation=TOKEN.activation)
    assert PermuQuant().unsupported(half) is None
    with pytest.raises(ValueError, match="an order of them changes nothing"):
        quantized(PermuQuant(), TOKEN, given)


# what is saved -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "how"),
    [(ConvRot(), TOKEN), (ALL_CODED, TOKEN), (ALL_CODED, GROUPED), (PermuQuant(), GROUPED)],
    ids=str,
)
def test_what_is_saved_comes_back(given: Any, method: Any, how: Bits, tmp_path: Path) -> None:
    made, report = quantized(method, how, given)
    save_quantized(made, tmp_path / "saved", report)
    loaded, _ = load_quantized(copy.deepcopy(given[0]), tmp_path / "saved")
    assert torch.equal(outputs(loaded), outputs(made))


@pytest.mark.parametrize("name", ["convrot", "orbitquant", "permuquant"])
def test_the_yaml_has_every_field_and_the_defaults(name: str) -> None:
    method = {"convrot": ConvRot, "orbitquant": OrbitQuant, "permuquant": PermuQuant}[name]
    settings = OmegaConf.load(Path(f"conf/method/{name}.yaml"))
    assert settings.pop("_target_") == f"{method.__module__}.{method.__name__}"
    given = {k: v.name if isinstance(v, Rounding) else v for k, v in asdict(method()).items()}
    assert dict(settings) == given
