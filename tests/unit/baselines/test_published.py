"""Published methods, each against an independent statement of what defines it, in float64."""

import copy
import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from scipy.stats import spearmanr
from torch import Tensor, nn

from baselines.balancing import spearman, step_weights
from baselines.budget import Budget
from baselines.dmq_les import DmqLes, focal_weight, power_of_two_factors
from baselines.mixdq import Choice, MixDq, choose_widths
from baselines.ptq4dit_csb import Ptq4DitCsb
from baselines.quarot import QuaRot
from baselines.rtn import RoundToNearest
from baselines.spinquant import SpinQuant, cayley_step
from baselines.svdquant import GELU_SHIFT, SvdQuant, exponents
from baselines.tfmq_fsc import TfmqFsc
from baselines.vidit_dyn import ViditDyn
from segquant.core import Bits, Calibration, Rounding
from segquant.core.outputs import layer_problem
from segquant.core.schemes import NumberFormat, TensorScheme
from tests.unit.baselines.timed import TIMESTEPS, Timed, calibrated, calls
from tests.unit.core.helpers import GROUP, bits, correlated, generator, power_ratio

FEATURES = 16
TOKEN = bits(4, 8, fine=True)


@cache
def setting(folder: Path) -> tuple[Timed, Calibration]:
    model, calibration = calibrated(folder, features=FEATURES)
    calibration.graph = {
        "block.down": SimpleNamespace(
            output_segments=(FEATURES,),
            input_segments=(
                SimpleNamespace(size=2 * FEATURES, low=-0.1699715, high=math.inf, one_sided=True),
            ),
            head_segments=(2 * FEATURES,),
        )
    }
    return model, calibration


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Timed, Calibration]:
    return setting(tmp_path_factory.mktemp("calls"))


def of_the_step(given: tuple[Timed, Calibration], *names: str) -> tuple[Timed, Calibration]:
    """The same with a graph that says of these layers that they see the timestep alone."""
    model, calibration = given
    layer = SimpleNamespace(
        output_segments=(), input_segments=(), head_segments=(), conditioning="modulation"
    )
    graph = {**calibration.graph, **dict.fromkeys(names, layer)}
    return model, replace(calibration, graph=graph)


def quantized(method: Any, how: Bits, given: tuple[Timed, Calibration]) -> tuple[Timed, Any]:
    model, calibration = given
    made = copy.deepcopy(model)
    report = method.quantize(made, calibration=calibration, bits=how)
    return made, report


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x, timestep)[0] for x, timestep in calls(FEATURES)])


def rounded(x: Tensor, step: Tensor) -> Tensor:
    return (x / step).round() * step


def token_layer(x: Tensor, w: Tensor, how: Bits = TOKEN) -> Tensor:
    """Per-channel weights and per-token inputs, to nearest, float64."""
    top_w, top_x = (2 ** (one.num_bits - 1) - 1 for one in (how.weight, how.activation))
    q_w = rounded(w, w.abs().amax(1, keepdim=True) / top_w)
    return rounded(x, x.abs().amax(1, keepdim=True) / top_x) @ q_w.T


def first_layer(made: Timed) -> tuple[Tensor, Tensor, Tensor]:
    """The first layer's output on its own rows [T, O], those rows, and its bias."""
    x = correlated(64, FEATURES, seed=77).double()
    with torch.no_grad():
        return made.first(x.float()).double(), x, made.first.bias.double()


# rotations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [8, 256])
def test_quarot_is_a_hadamard_product(given: Any, block_size: int) -> None:
    method = QuaRot(block_size=block_size, random_signs=False, rounding=Rounding.rtn)
    made, _ = quantized(method, TOKEN, given)
    size = min(block_size, FEATURES)
    block = torch.from_numpy(scipy_hadamard(size)).double() / math.sqrt(size)
    r = torch.block_diag(*[block] * (FEATURES // size))
    found, x, bias = first_layer(made)
    w = given[0].first.weight.detach().double()
    assert power_ratio(found, token_layer(x @ r, w @ r) + bias) < 1e-6


def test_quarots_signs_are_random_and_its_own(given: Any) -> None:
    made, _ = quantized(QuaRot(rounding=Rounding.rtn), TOKEN, given)
    r = made.first.input_rotation[0].double()
    h = torch.from_numpy(scipy_hadamard(FEATURES)).double() / math.sqrt(FEATURES)
    signs = r @ h.T
    assert torch.allclose(signs.abs(), torch.eye(FEATURES).double(), atol=1e-6)
    assert len({float(s) for s in signs.diagonal().round()}) == 2
    assert not torch.equal(made.first.input_rotation, made.block.up.input_rotation)


def test_quarot_by_gptq_is_below_rounding_to_nearest(given: Any) -> None:
    exact = outputs(given[0])
    how = bits(4, 8, fine=True)
    by_gptq = power_ratio(outputs(quantized(QuaRot(), how, given)[0]), exact)
    nearest = power_ratio(outputs(quantized(QuaRot(rounding=Rounding.rtn), how, given)[0]), exact)
    assert by_gptq < nearest


def test_cayley_step_is_the_formula_and_stays_orthogonal() -> None:
    r = torch.linalg.qr(torch.randn(2, 6, 6, generator=generator(0)).double()).Q
    g = torch.randn(2, 6, 6, generator=generator(1)).double()
    found = cayley_step(r.float(), g.float(), length=0.3).double()
    for n in range(2):
        m = g[n] @ r[n].T - 0.5 * r[n] @ r[n].T @ g[n] @ r[n].T
        a, eye = m - m.T, torch.eye(6).double()
        expected = torch.linalg.inv(eye + 0.15 * a) @ (eye - 0.15 * a) @ r[n]
        torch.testing.assert_close(found[n], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[n] @ found[n].T, eye, atol=1e-5, rtol=0)


def test_spinquant_learns_below_its_start(given: Any) -> None:
    """On the rows it learns from, with weights in 8 bit, a learned rotation beats its start."""
    how = bits(8, 4, fine=True)
    learned, _ = quantized(SpinQuant(budget=Budget.paper, rounding=Rounding.rtn), how, given)
    start, _ = quantized(SpinQuant(learning_rate=0.0, rounding=Rounding.rtn), how, given)
    x = given[1].statistics["first"].sample_TI
    with torch.no_grad():
        exact = given[0].first(x)
        assert power_ratio(learned.first(x), exact) < 0.9 * power_ratio(start.first(x), exact)
    r = learned.first.input_rotation[0]
    torch.testing.assert_close(r @ r.T, torch.eye(FEATURES), atol=1e-4, rtol=0)


# balancing -----------------------------------------------------------------------------------


def test_spearman_is_scipys() -> None:
    for seed in range(5):
        a = torch.randn(30, generator=generator(seed))
        b = (a + torch.randn(30, generator=generator(seed + 50))).round()
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0


@pytest.mark.parametrize("correlation", [True, False])
def test_ptq4dit_csb_against_the_equations(given: Any, correlation: bool) -> None:
    model, calibration = given
    made, _ = quantized(Ptq4DitCsb(correlation=correlation), TOKEN, given)
    w = model.first.weight.detach().double().numpy()
    by_step = calibration.steps["first"]
    s_t = np.maximum(-by_step.low_SI.double().numpy(), by_step.high_SI.double().numpy())
    s_w = np.abs(w).max(0)
    rho = np.array([spearmanr(row, s_w).statistic for row in s_t])
    eta = np.exp(-rho) / np.exp(-rho).sum() if correlation else np.full(len(rho), 1 / len(rho))
    s_x = (eta[:, None] * s_t).sum(0)
    balanced = np.sqrt(s_x * s_w)
    b_x, b_w = balanced / s_x, balanced / s_w
    assert np.allclose(b_x * b_w, 1)  # B_X and B_W undo one another
    found, x, bias = first_layer(made)
    exact = token_layer(x * torch.from_numpy(b_x), model.first.weight.double() * torch.tensor(b_w))
    assert power_ratio(found, exact + bias) < 1e-6


def test_less_correlated_steps_weigh_more() -> None:
    w = torch.arange(1.0, 9.0)
    eta = step_weights(torch.stack([w, w.flip(0)]), w)
    assert eta[1] == pytest.approx(math.exp(2) * float(eta[0]))


@pytest.mark.parametrize("rotate", [False, True])
def test_vidit_against_the_equations(given: Any, rotate: bool) -> None:
    model, _calibration = given
    made, _ = quantized(ViditDyn(alpha=0.3, rotate=rotate), TOKEN, given)
    first = calls(FEATURES)[0]
    rows = torch.cat([x * (0.2 + t / 1000) for x, t in calls(FEATURES) if t == first[1]]).double()
    w = model.first.weight.detach().double()
    s = rows.abs().amax(0) ** 0.3 / w.abs().amax(0) ** 0.7
    r = made.first.input_rotation[0].double() if rotate else torch.eye(FEATURES).double()
    found, x, bias = first_layer(made)
    assert power_ratio(found, token_layer((x / s) @ r, (w * s) @ r) + bias) < 1e-6
    assert ViditDyn().unsupported(bits(8, 8)) is not None


# steps ---------------------------------------------------------------------------------------


def test_tfmq_gives_layers_of_the_step_the_range_of_the_step(given: Any) -> None:
    model, _ = given
    how = bits(8, 4, symmetric=False)
    made, report = quantized(TfmqFsc(), how, of_the_step(given, "first"))
    w = model.first.weight.detach().double()
    step_w = (w.max() - w.min()) / 255
    zero_w = (-128 - w.min() / step_w).round()
    q_w = (((w / step_w).round() + zero_w).clamp(-128, 127) - zero_w) * step_w
    for timestep in TIMESTEPS:
        rows = [x * (0.2 + t / 1000) for x, t in calls(FEATURES) if float(t) == timestep]
        x = torch.cat(rows).double()
        step = (x.max() - x.min()) / 15
        zero = (-8 - x.min() / step).round()
        q_x = (((x / step).round() + zero).clamp(-8, 7) - zero) * step
        exact = q_x @ q_w.T + model.first.bias.detach().double()
        with torch.no_grad():
            made(calls(FEATURES)[0][0], torch.tensor(timestep))  # the denoiser tells the step
            assert power_ratio(made.first(x.float()).double(), exact) < 1e-6
    assert made.block.up.spec.steps == 0
    assert "4 steps" in report.layers_quantized[0]["notes"][0]
    assert TfmqFsc().unsupported(TOKEN) is not None


def test_tfmq_is_finer_than_one_range(given: Any) -> None:
    how, exact = bits(8, 4), outputs(given[0])
    every = of_the_step(given, "first", "block.up", "block.down")
    per_step = outputs(quantized(TfmqFsc(), how, every)[0])
    one_range = outputs(quantized(RoundToNearest(), how, given)[0])
    assert power_ratio(per_step, exact) < power_ratio(one_range, exact)


# learned scaling -----------------------------------------------------------------------------


def test_dmq_applies_what_it_learned_and_it_helps(given: Any) -> None:
    model, _calibration = given
    method = DmqLes(power_of_two=False)
    made, report = quantized(method, TOKEN, given)
    tau = made.first.input_scale.double()
    w = model.first.weight.detach().double()
    found, x, bias = first_layer(made)
    assert power_ratio(found, token_layer(x / tau, w * tau) + bias) < 1e-6
    plain = quantized(RoundToNearest(), TOKEN, given)[1]
    errors = [sum(e["relative_error"] for e in r.layers_quantized) for r in (plain, report)]
    assert errors[1] < errors[0]


def test_focal_weights_are_the_formula() -> None:
    running = torch.tensor([1.0, 3.0], dtype=torch.float64)
    weight = focal_weight(running, 0, 5.0, focal=2.0, momentum=0.9)
    mean = 0.9 * 1 + 0.1 * 5
    assert float(running[0]) == pytest.approx(mean)
    assert weight == pytest.approx((1 - mean / (mean + 3)) ** 2)


def test_power_of_two_steps_by_majority(given: Any) -> None:
    """A channel eight times smaller than the widest votes for an eighth of the common step."""
    model, calibration = given
    how = bits(8, 4)
    rows = correlated(64, FEATURES, seed=1)
    rows = rows / rows.abs().amax(0)
    shrink = torch.tensor([1.0, 0.5, 0.25, 0.125] * 4)
    rows[:, :4] = torch.linspace(-1, 1, 64)[:, None]
    seen = calibration.statistics["first"]
    problem = layer_problem(model.first, name="first", seen=seen, bits=how)
    problem = type(problem)(
        **{
            **vars(problem),
            "sample_TI": rows * shrink,
            "low_I": -shrink,
            "high_I": shrink.clone(),
        }
    )
    samples = (rows * shrink).reshape(4, 16, FEATURES)
    found = power_of_two_factors(problem, samples, consensus=0.85)
    common, expected = 1 / 7, []
    for channel in range(FEATURES):
        votes = []
        for rows_K in samples[:, :, channel].double().numpy():
            costs = []
            for d in range(4):
                step = common / 2**d
                code = np.clip(np.round(rows_K / step), -8, 7)
                costs.append(((code * step - rows_K) ** 2).sum())
            votes.append(int(np.argmin(costs)))
        most = max(set(votes), key=votes.count)
        expected.append(2.0**-most if votes.count(most) / 4 >= 0.85 else 1.0)
    assert found.tolist() == expected
    assert len(set(expected)) > 1


# low rank ------------------------------------------------------------------------------------


def svdquant_layer(w: Tensor, x: Tensor, *, rank: int, iterations: int) -> tuple[Tensor, float]:
    """The published iteration on one layer, weights alone, per-channel 4 bits, in float64.

    Factors are kept in float16, as they are in the layer.
    """

    def low(target: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(target, full_matrices=False)
        root = s[:rank].sqrt()
        up, down = (u[:, :rank] * root).half().double(), (root[:, None] * v[:rank]).half().double()
        return up @ down

    def q(r: Tensor) -> Tensor:
        return rounded(r, r.abs().amax(1, keepdim=True) / 7)

    best, least = w, math.inf
    residual = torch.zeros_like(w)
    for _ in range(iterations):
        branch = low(w - residual)
        residual = q(w - branch)
        error = float((x @ (branch + residual - w).T).square().mean())
        if error >= least:
            break
        best, least = branch + residual, error
    return best, least


@pytest.mark.parametrize("iterations", [1, 100])
def test_svdquant_iterates_as_published(given: Any, iterations: int) -> None:
    model, calibration = given
    method = SvdQuant(
        rank=3, iterations=iterations, smooth_grids=0, unsigned_shift=False, sample_rows=256
    )
    made, _ = quantized(method, bits(4, 16, fine=True), given)
    rows = calibration.statistics["first"].sample_TI.double()
    weight, _ = svdquant_layer(
        model.first.weight.detach().double(), rows, rank=3, iterations=iterations
    )
    found, x, bias = first_layer(made)
    assert power_ratio(found, x @ weight.T + bias) < 1e-5


def test_more_iterations_are_no_worse_on_the_calibrations_rows(given: Any) -> None:
    errors = []
    for iterations in (1, 100):
        method = SvdQuant(rank=3, iterations=iterations, smooth_grids=0, unsigned_shift=False)
        _, report = quantized(method, bits(4, 16, fine=True), given)
        errors.append([entry["relative_error"] for entry in report.layers_quantized])
    assert all(b <= a * (1 + 1e-6) for a, b in zip(*errors, strict=True))
    assert sum(errors[1]) < sum(errors[0])


def test_svdquants_smoothing_is_the_best_of_its_candidates(given: Any) -> None:
    assert len(exponents(20)) == 39
    model, calibration = given
    seen = calibration.statistics["first"]
    x, w = seen.sample_TI.double(), model.first.weight.detach().double()
    errors = {}
    for n in range(5):
        pairs = [(0.0, 0.0)] if n == 0 else [(n / 5, 0.0), (n / 5, 1 - n / 5)]
        for a, b in pairs:
            s = seen.amax.double() ** a / w.abs().amax(0) ** b
            errors[a, b] = float((token_layer(x / s, w * s) - x @ w.T).square().mean())
    method = SvdQuant(rank=0, iterations=1, smooth_grids=5, unsigned_shift=False)
    _, report = quantized(method, TOKEN, given)
    note = report.layers_quantized[0]["notes"][0]
    a, b = (float(part.split("^")[1]) for part in note.removeprefix("smoothing ").split(" / "))
    assert errors[a, b] <= min(errors.values()) * 1.001


def test_svdquant_shifts_gelu_above_zero_and_back(given: Any) -> None:
    """Per group of 8, unsigned 4-bit codes of x + 0.171875; the bias takes the shift back."""
    model, _ = given
    scheme = TensorScheme(num_bits=4, granularity=GROUP, group_size=8, dynamic=True)
    how = Bits(name="g", weight=TensorScheme(num_bits=8, granularity=GROUP, group_size=8),
               activation=scheme)  # fmt: skip
    method = SvdQuant(rank=0, iterations=1, smooth_grids=0)
    made, report = quantized(method, how, given)
    x = nn.functional.gelu(correlated(64, 2 * FEATURES, seed=5)).double()
    w = model.block.down.weight.detach().double()
    shifted = (x + GELU_SHIFT).unflatten(1, (-1, 8))
    assert float(shifted.min()) >= 0
    q_x = rounded(shifted, shifted.amax(-1, keepdim=True) / 15).flatten(1)
    groups = w.unflatten(1, (-1, 8))
    q_w = rounded(groups, groups.abs().amax(-1, keepdim=True) / 127).flatten(1)
    bias = model.block.down.bias.detach().double() - GELU_SHIFT * w.sum(1)
    with torch.no_grad():
        found = made.block.down(x.float()).double()
    assert power_ratio(found, q_x @ q_w.T + bias) < 1e-6
    assert made.first.input_shift is None
    assert report.layers_quantized[0]["activation"] == "int4 per_group 8 dynamic"


def test_svdquant_keeps_the_modulations_input(given: Any) -> None:
    _, report = quantized(SvdQuant(rank=2), TOKEN, of_the_step(given, "first"))
    assert report.layers_quantized[0]["activation"] == "16 bit"
    assert report.layers_quantized[1]["activation"] != "16 bit"
    assert report.search_candidates == 39
    off = SvdQuant(rank=2, modulation_in_16_bit=False)
    _, report = quantized(off, TOKEN, of_the_step(given, "first"))
    assert report.layers_quantized[0]["activation"] != "16 bit"


# mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_integer_program_is_solved_exactly(seed: int) -> None:
    g = generator(seed)
    table = {
        f"layer{n}": [
            Choice(
                num_bits=width,
                error=float(torch.rand((), generator=g)) * 4.0**-width,
                stored_bits=width * int(torch.randint(100, 1000, (), generator=g)),
            )
            for width in (2, 4, 8)
        ]
        for n in range(5)
    }
    budget = sum(row[1].stored_bits for row in table.values())
    best = min(
        sum(one.error for one in pick)
        for pick in itertools.product(*table.values())
        if sum(one.stored_bits for one in pick) <= budget
    )
    chosen = choose_widths(table, budget=budget, fallback=dict.fromkeys(table, 4))
    taken = [next(o for o in table[name] if o.num_bits == w) for name, w in chosen.items()]
    assert sum(one.stored_bits for one in taken) <= budget
    assert sum(one.error for one in taken) <= best * (1 + 1e-3)


def test_mixdq_takes_no_more_memory_than_uniform_bits(given: Any) -> None:
    _, mixed = quantized(MixDq(protected=0.0), TOKEN, given)
    _, plain = quantized(RoundToNearest(), TOKEN, given)
    assert mixed.effective_bits_per_weight <= plain.effective_bits_per_weight
    total = [sum(e["relative_error"] for e in r.layers_quantized) for r in (mixed, plain)]
    assert total[0] <= total[1] * 1.01
    _, protected = quantized(MixDq(protected=0.34), TOKEN, given)
    kept = [e["name"] for e in protected.layers_quantized if e["activation"] == "16 bit"]
    assert len(kept) == 2  # a third of three layers, rounded up
    fp8 = Bits(
        name="fp8",
        weight=TensorScheme(num_bits=8, number_format=NumberFormat.fp8_e4m3),
        activation=TensorScheme(num_bits=8, number_format=NumberFormat.fp8_e4m3),
    )
    assert "integer weights" in (MixDq().unsupported(fp8) or "")


def test_mixdq_moves_bits_from_where_they_are_not_needed(given: Any) -> None:
    """A layer that 2 bits hold exactly gives its bits to another, where `widths` has room."""
    model, calibration = copy.deepcopy(given[0]), given[1]
    with torch.no_grad():
        model.first.weight.copy_(model.first.weight.sign())
    found = {}
    for widths in ([2, 4], [2, 4, 5]):
        _, report = quantized(MixDq(widths=widths, protected=0), TOKEN, (model, calibration))
        names = (entry["weight"].split()[0] for entry in report.layers_quantized)
        found[tuple(widths)] = list(names)
    assert found[2, 4] == ["int4", "int4", "int4"]
    assert found[2, 4, 5][0] == "int2"
    assert sorted(found[2, 4, 5]) == ["int2", "int4", "int5"]


# settings ------------------------------------------------------------------------------------

STATIC = bits(4, 4)


@pytest.mark.parametrize(
    ("method", "how", "change", "base"),
    [
        (QuaRot, TOKEN, {"block_size": 4}, {}),
        (QuaRot, TOKEN, {"random_signs": False}, {}),
        (QuaRot, TOKEN, {"seed": 1}, {}),
        (QuaRot, TOKEN, {"rounding": Rounding.rtn}, {}),
        (QuaRot, TOKEN, {"damping": 1.0}, {}),
        (SpinQuant, TOKEN, {"budget": Budget.paper}, {}),
        (SpinQuant, TOKEN, {"learning_rate": 0.1}, {}),
        (SpinQuant, TOKEN, {"block_size": 4}, {}),
        (SpinQuant, TOKEN, {"seed": 1}, {}),
        (SpinQuant, TOKEN, {"rounding": Rounding.rtn}, {}),
        (SpinQuant, TOKEN, {"damping": 1.0}, {}),
        (Ptq4DitCsb, TOKEN, {"correlation": False}, {}),
        (ViditDyn, TOKEN, {"alpha": 0.6}, {}),
        (ViditDyn, TOKEN, {"rotate": False}, {}),
        (ViditDyn, TOKEN, {"block_size": 4}, {}),
        (ViditDyn, TOKEN, {"seed": 1}, {}),
        (DmqLes, STATIC, {"learning_rate": 1e-2}, {}),
        (DmqLes, STATIC, {"focal": 5.0}, {}),
        (DmqLes, STATIC, {"momentum": 0.1}, {"focal": 5.0}),
        (DmqLes, STATIC, {"seed": 1}, {}),
        (SvdQuant, TOKEN, {"rank": 1}, {"rank": 4}),
        (SvdQuant, TOKEN, {"iterations": 1}, {"rank": 4}),
        (SvdQuant, TOKEN, {"smooth_grids": 0}, {"rank": 4}),
        (SvdQuant, TOKEN, {"search_with_low_rank": False}, {"rank": 4}),
        (SvdQuant, TOKEN, {"unsigned_shift": False}, {"rank": 4}),
        (SvdQuant, TOKEN, {"rounding": Rounding.gptq}, {"rank": 4}),
        (SvdQuant, TOKEN, {"damping": 1.0}, {"rank": 4, "rounding": Rounding.gptq}),
        (MixDq, TOKEN, {"protected": 0.9}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_each_setting_reaches_the_computation(
    given: Any, method: Any, how: Bits, change: dict[str, Any], base: dict[str, Any]
) -> None:
    before = outputs(quantized(method(**base), how, given)[0])
    after = outputs(quantized(method(**{**base, **change}), how, given)[0])
    assert not torch.equal(before, after)


def test_settings_of_power_of_two_scaling_reach_the_computation(given: Any) -> None:
    model, calibration = given
    parts = tuple(
        SimpleNamespace(size=FEATURES, low=-math.inf, high=math.inf, one_sided=False)
        for _ in range(2)
    )
    graph = {
        "block.down": SimpleNamespace(
            output_segments=(FEATURES,), input_segments=parts, head_segments=(2 * FEATURES,)
        )
    }
    concatenated = Calibration(
        statistics=calibration.statistics,
        forwards=calibration.forwards,
        graph=graph,
        steps=calibration.steps,
    )
    found = [
        outputs(quantized(DmqLes(**change), STATIC, (model, concatenated))[0])
        for change in ({}, {"power_of_two": False}, {"consensus": 0.0})
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_settings_that_must_not_change_the_result_do_not(given: Any) -> None:
    for method in (QuaRot, SpinQuant):
        one, other = (
            outputs(quantized(method(gptq_block_size=size), TOKEN, given)[0]) for size in (4, 128)
        )
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        (QuaRot, {"block_size": 6}, "power of two"),
        (SpinQuant, {"block_size": 2}, "power of two"),
        (ViditDyn, {"alpha": 1.5}, "[0, 1]"),
        (DmqLes, {"consensus": 2.0}, "[0, 1]"),
        (SvdQuant, {"smooth_grids": -1}, "0 for no smoothing"),
        (MixDq, {"widths": [1]}, "2 to 8"),
    ],
    ids=str,
)
def test_bad_settings_are_named(method: Any, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        method(**change)
    assert words in str(caught.value)


def test_a_calibration_without_steps_is_refused(given: Any) -> None:
    model, calibration = given
    bare = Calibration(statistics=calibration.statistics, forwards=0, graph=calibration.graph)
    for method in (Ptq4DitCsb(), ViditDyn(), DmqLes(power_of_two=False)):
        with pytest.raises(ValueError, match="calibrate with steps=True"):
            method.quantize(copy.deepcopy(model), calibration=bare, bits=TOKEN)
