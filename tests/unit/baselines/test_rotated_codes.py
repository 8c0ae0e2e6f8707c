"""ConvRot: against an independent statement of what defines it, in float64, and its settings."""

import copy
import math
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor, nn

from baselines.convrot import ConvRot
from segquant.core import Bits, Calibration, Rounding
from segquant.core.transforms import regular_block, regular_hadamard
from tests.unit.baselines.timed import Timed, calibrated, calls
from tests.unit.core.helpers import bits, correlated, power_ratio

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
