"""DiRotQ against an independent float64 statement of its equation."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.dirotq import DirotQ
from baselines.quarot import QuaRot
from segquant.core import Bits, Calibration, LowRankSettings, Rounding
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.principal import principal_basis, random_orthogonal
from segquant.deploy.onnx_layer import OnnxLinear
from tests.unit.baselines.test_published import (
    FEATURES,
    TOKEN,
    first_layer,
    outputs,
    quantized,
    setting,
)
from tests.unit.core.helpers import (
    GROUP,
    bits,
    calibrate,
    correlated,
    generator,
    power_ratio,
    scheme,
)

TO_NEAREST = DirotQ(rounding=Rounding.rtn)
HEAD = 2  # 1/8 of 16 features
GROUPS = Bits(
    name="groups",
    weight=scheme(4, GROUP, group_size=4),
    activation=scheme(4, GROUP, group_size=4, dynamic=True),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return setting(tmp_path_factory.mktemp("calls"))


def numpy_token_grid(x: np.ndarray, top: int) -> np.ndarray:
    step = np.abs(x).max(1, keepdims=True) / top
    return np.round(x / step) * step


def test_the_layer_is_the_papers_equation(given: Any) -> None:
    """`X U1 (W U1)^T + Q(X U2) Q(W U2)^T`: the rest alone has scales, the head none."""
    made, _ = quantized(DirotQ(rounding=Rounding.rtn, mix=False), TOKEN, given)
    gram = given[1].statistics["first"].gram_II.double().numpy()
    energies, vectors = np.linalg.eigh(gram)
    u = vectors[:, np.argsort(-energies)]
    found, x, bias = first_layer(made)
    w, rows = given[0].first.weight.detach().double().numpy(), x.numpy()
    xu, wu = rows @ u, w @ u
    rest = numpy_token_grid(xu[:, HEAD:], 127) @ numpy_token_grid(wu[:, HEAD:], 7).T
    expected = torch.from_numpy(xu[:, :HEAD] @ wu[:, :HEAD].T + rest) + bias
    assert power_ratio(found, expected) < 1e-6
    everything = torch.from_numpy(numpy_token_grid(xu, 127) @ numpy_token_grid(wu, 7).T) + bias
    assert power_ratio(found, everything) > 1e-4


def test_the_basis_is_orthogonal_and_its_head_has_the_most_energy() -> None:
    x = correlated(200, 12, seed=3).double()
    found = principal_basis((x.T @ x).float(), rank=3, generator=generator(0))
    u = found.basis_II.double()
    torch.testing.assert_close(u.T @ u, torch.eye(12).double(), atol=1e-5, rtol=0)
    energy = (x @ u).square().sum(0)
    singular = torch.linalg.svdvals(x).square()
    torch.testing.assert_close(energy[:3], singular[:3], rtol=1e-4, atol=1e-4)
    assert found.share == pytest.approx(float(singular[:3].sum() / singular.sum()), rel=1e-4)
    plain = principal_basis((x.T @ x).float(), rank=3, generator=None)
    torch.testing.assert_close(
        (x @ plain.basis_II.double()).square().sum(0), singular, rtol=1e-3, atol=1e-3
    )
    turn = random_orthogonal(7, generator=generator(1))
    torch.testing.assert_close(turn @ turn.T, torch.eye(7).double())


def test_layers_of_one_input_have_one_basis_and_a_seed_of_their_own(given: Any) -> None:
    made, report = quantized(TO_NEAREST, TOKEN, given)
    other, _ = quantized(DirotQ(rounding=Rounding.rtn, seed=1), TOKEN, given)
    one, two = (model.first.input_rotation[0] for model in (made, other))
    torch.testing.assert_close(one[:, :HEAD].abs(), two[:, :HEAD].abs())
    assert not torch.allclose(one[:, HEAD:], two[:, HEAD:], atol=0.1)
    assert not torch.equal(made.first.input_rotation, made.block.up.input_rotation)
    notes = report.layers_quantized[0]["notes"]
    assert any(note.startswith(f"{HEAD} directions with ") for note in notes)


def test_costs_are_the_basis_and_the_heads_weight(given: Any) -> None:
    made, report = quantized(TO_NEAREST, TOKEN, given)
    entry = report.layers_quantized[0]
    assert entry["low_rank_parameters"] == [0, HEAD * FEATURES]
    layers = (made.first, made.block.up, made.block.down)
    rows = [given[1].statistics[name].rows for name in ("first", "block.up", "block.down")]
    extra = [q.in_features**2 + (q.in_features // 8) * q.out_features for q in layers]
    macs = [q.in_features * q.out_features for q in layers]
    expected = np.dot(extra, rows) / np.dot(macs, rows)
    assert report.extra_macs_fraction == pytest.approx(expected)
    stored = sum(
        q.in_features * q.out_features * 4  # codes, those of zeros too
        + q.weight_scale.numel() * 32
        + q.in_features**2 * 16
        + (q.in_features // 8) * q.out_features * 16
        for q in layers
    )
    assert report.effective_bits_per_weight == pytest.approx(stored / sum(macs))


def test_a_group_sets_the_least_number_of_directions(given: Any) -> None:
    layer, narrow = given[0].first, torch.nn.Linear(4, 4)
    assert DirotQ(share=0.3).rank_of(layer, bits=TOKEN) == round(0.3 * FEATURES)
    assert DirotQ().rank_of(layer, bits=GROUPS) == 4
    assert DirotQ().rank_of(narrow, bits=GROUPS) == 0
    made, _ = quantized(TO_NEAREST, GROUPS, given)
    assert made.first.spec.rank == 4
    assert made.first.spec.activation_blocks == (4, 4, 4, 4)
    assert not bool(made.first.integer_codes()[:, :4].any())


@pytest.mark.parametrize(
    "change",
    [{"share": 0.5}, {"mix": False}, {"seed": 1}, {"rounding": Rounding.rtn}, {"damping": 1.0}],
    ids=str,
)
def test_each_setting_reaches_the_computation(given: Any, change: dict[str, Any]) -> None:
    before = outputs(quantized(DirotQ(), TOKEN, given)[0])
    after = outputs(quantized(DirotQ(**change), TOKEN, given)[0])
    assert not torch.equal(before, after)


def test_block_size_does_not_change_the_result_and_rows_are_asked_for(given: Any) -> None:
    one, other = (outputs(quantized(DirotQ(block_size=n), TOKEN, given)[0]) for n in (4, 128))
    torch.testing.assert_close(one, other)
    assert DirotQ(sample_rows=7).needs().rows == 7
    assert DirotQ().needs().gram


def test_without_the_random_rotation_gptq_is_rounding_to_nearest(given: Any) -> None:
    """The Gram matrix is diagonal in its own basis."""
    by_gptq = outputs(quantized(DirotQ(mix=False, damping=1e-6), TOKEN, given)[0])
    nearest = outputs(quantized(DirotQ(mix=False, rounding=Rounding.rtn), TOKEN, given)[0])
    assert power_ratio(by_gptq, nearest) < 1e-3


def test_what_it_cannot_do_is_named(given: Any) -> None:
    with pytest.raises(ValueError, match="share=0"):
        DirotQ(share=0)
    with pytest.raises(ValueError, match="iterations=1"):
        LowRankSettings(rank=2, iterations=2, leading=True)
    assert "static activation scales" in (DirotQ().unsupported(bits(4, 4)) or "")
    model, calibration = given
    bare = Calibration(
        statistics={
            name: seen.narrowed(gram=False, rows=8) for name, seen in calibration.statistics.items()
        },
        forwards=0,
    )
    with pytest.raises(ValueError, match="calibrate with gram=True"):
        quantized(DirotQ(), TOKEN, (model, bare))


def test_the_row_says_what_it_has(given: Any) -> None:
    _, report = quantized(DirotQ(), TOKEN, given)
    assert report.elements == [
        "the 0.125 of the input's directions of most energy in 16 bit",
        "random rotation of the rest",
        "GPTQ",
    ]
    _, plain = quantized(DirotQ(mix=False), TOKEN, given)
    assert any("mix=false" in words for words in plain.left_out)


@pytest.mark.parametrize("how", [TOKEN, GROUPS], ids=lambda how: how.name)
def test_it_is_saved_and_exported_as_it_runs(given: Any, how: Bits, tmp_path: Path) -> None:
    made, report = quantized(DirotQ(), how, given)
    save_quantized(made, tmp_path / "saved", report)
    loaded, _ = load_quantized(copy.deepcopy(given[0]), tmp_path / "saved")
    assert torch.equal(outputs(made), outputs(loaded))
    x = correlated(6, FEATURES, seed=5)
    torch.testing.assert_close(OnnxLinear(made.first)(x), made.first(x), rtol=1e-4, atol=1e-4)


class Pair(nn.Module):
    """Two Linears that read one tensor, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(32, 16), nn.Linear(32, 16)
        self.out = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q(x) * self.k(x).sigmoid())


@pytest.mark.parametrize(
    ("method", "shared"), [(DirotQ(), True), (QuaRot(random_signs=True), False)]
)
def test_a_rotation_of_one_input_is_charged_once(method: Any, shared: bool) -> None:
    """Signs that each layer draws are other rotations of one input: each is charged."""
    model = Pair()
    calibration = calibrate(model, [correlated(256, 32, seed=0)])
    of = {name: calibration.statistics[name].shared_with for name in ("q", "out")}
    assert of == {"q": ("k",), "out": ()}
    alone = {name: replace(seen, shared_with=()) for name, seen in calibration.statistics.items()}
    reports = [
        method.quantize(Pair(), calibration=one, bits=TOKEN)
        for one in (calibration, replace(calibration, statistics=alone))
    ]
    bits = [r.effective_bits_per_weight * (2 * 32 * 16 + 16 * 32) for r in reports]
    macs = [r.extra_macs_fraction * (2 * 32 * 16 + 16 * 32) for r in reports]
    assert bits[1] - bits[0] == pytest.approx(32 * 32 * 16 if shared else 0)
    assert macs[1] - macs[0] == pytest.approx(32 * 32 if shared else 0)
