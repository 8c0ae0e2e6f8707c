"""Sequential quantization: its stages, what later layers see, what it costs and what it gains."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.gptq import Gptq
from baselines.qronos import Qronos
from segquant.core import sequential
from segquant.core.calibration import Calibration
from segquant.core.grids import int_grid
from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import QuantLinear
from segquant.core.plain_linears import linear_layers
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.sequential import Sequential, block_of_layers, calls_of_one_forward, stage_layers
from segquant.graph import analyze
from segquant.method import SegQuant
from tests.unit.core import denoisers
from tests.unit.core.helpers import bits, calibrate, correlated, generator


def replayed(model: nn.Module, batches: list[Any], **more: Any) -> Calibration:
    """A calibration that can run a denoiser on its inputs again."""

    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        for batch in batches[:calls]:
            denoiser(**batch) if isinstance(batch, dict) else denoiser(batch)

    return replace(calibrate(model, batches, **more), replay=replay)


class Residual(nn.Module):
    """Blocks of two Linears around a residual stream; listed before the layer that runs first."""

    def __init__(self, *, blocks: int = 3, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width)})
            for _ in range(blocks)
        )
        self.first = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block["down"](torch.nn.functional.silu(block["up"](x)))
        return self.last(x)


def plan(model: nn.Module, calibration: Calibration, how: Sequential) -> list[tuple[str, ...]]:
    once, forwards = calls_of_one_forward(model, calibration=calibration)
    assert forwards == 1
    return stage_layers(
        model,
        order=list(once),
        calibration=calibration,
        sequential=how,
        wanted=set(calibration.statistics),
    )


def test_stages_follow_the_calls_not_the_modules() -> None:
    model = Residual(blocks=2)
    calibration = replayed(model, [torch.randn(4, 32, generator=generator(0))])
    assert plan(model, calibration, Sequential.blocks) == [
        ("first",),
        ("blocks.0.up", "blocks.0.down"),
        ("blocks.1.up", "blocks.1.down"),
        ("last",),
    ]
    apart = plan(model, calibration, Sequential.inputs)
    assert [name for (name,) in apart][:3] == ["first", "blocks.0.up", "blocks.0.down"]


@pytest.mark.parametrize("name", sorted(denoisers.ALL))
def test_blocks_of_real_denoisers(name: str) -> None:
    """Transformer blocks are found by themselves; every called layer is in exactly one stage."""
    model, batches, _ = denoisers.ALL[name]()
    calibration = replayed(model, batches[:1])
    blocks = set(block_of_layers(model).values())
    expected = {
        "sd3": "transformer_blocks.1",
        "flux": "single_transformer_blocks.0",
        "unet": "down_blocks.1.attentions.0.transformer_blocks.0",
    }
    assert expected[name] in blocks
    assert not any(block.endswith((".to_out", ".ff", ".net", "to_out.0")) for block in blocks)
    for how in (Sequential.blocks, Sequential.inputs):
        found = plan(model, calibration, how)
        assert sorted(n for layers in found for n in layers) == sorted(calibration.statistics)
    if name == "sd3":
        at = "transformer_blocks.1.attn"
        assert (f"{at}.to_q", f"{at}.to_k", f"{at}.to_v") in found


def gptq_to_grid(w: Tensor, x: Tensor, *, num_bits: int, damping: float = 0.01) -> Tensor:
    """Algorithm 1 of the paper in float64, per-channel symmetric; returns the quantized weight."""
    w, x, grid = w.double().clone(), x.double(), int_grid(num_bits)
    step = w.abs().amax(1) / grid.quant_max
    h = x.T @ x
    h += damping * h.diagonal().mean() * torch.eye(h.shape[0], dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    result = torch.empty_like(w)
    for i in range(w.shape[1]):
        codes = (w[:, i] / step).round().clamp(grid.quant_min, grid.quant_max)
        result[:, i] = codes * step
        w[:, i + 1 :] -= ((w[:, i] - result[:, i]) / u[i, i])[:, None] * u[i, i + 1 :]
    return result


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("how", [Sequential.inputs, Sequential.none])
def test_two_layers_against_a_float64_transcription(how: Sequential) -> None:
    """In sequence the second layer's H comes from what the quantized first one gives."""
    model, x = Two(), correlated(512, 24, seed=0)
    exact, quant = copy.deepcopy(model).double(), copy.deepcopy(model)
    calibration = replayed(model, list(x.split(128)))
    Gptq(sequential=how).quantize(quant, calibration=calibration, bits=bits(3, 16, fine=True))
    seen = exact.a(x.double())
    first = gptq_to_grid(model.a.weight.detach(), x, num_bits=3)
    exact.a.weight.data = first
    if how is not Sequential.none:
        seen = exact.a(x.double())
    second = gptq_to_grid(model.b.weight.detach(), torch.relu(seen).detach(), num_bits=3)
    torch.testing.assert_close(quant.a.dense_OI.double(), first, rtol=0, atol=1e-6)
    # A code on a tie may differ by float32 rounding and then change later columns of its row.
    same = ((quant.b.dense_OI.double() - second).abs() < 1e-6).double().mean()
    assert float(same) > 0.98


def output_error(model: nn.Module, exact: Tensor, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - exact).double().square().sum() / exact.double().square().sum())


def test_the_whole_output_is_no_worse_than_in_parallel() -> None:
    """Correlated inputs, weights of 2 and 3 bits: the geometric mean of the ratios over seeds."""
    ratios = []
    for seed in range(6):
        model, x = Residual(seed=seed), correlated(1024, 32, seed=seed)
        with torch.no_grad():
            exact = model(x)
        calibration = replayed(model, list(x.split(256)))
        errors = []
        for how in (Sequential.none, Sequential.blocks, Sequential.inputs):
            quant = copy.deepcopy(model)
            Gptq(sequential=how).quantize(
                quant, calibration=calibration, bits=bits(2 + seed % 2, 16, fine=True)
            )
            errors.append(output_error(quant, exact, x))
        ratios.append([errors[1] / errors[0], errors[2] / errors[0]])
    assert float(torch.tensor(ratios).log().mean(0).exp().max()) <= 1.0


def test_the_report_states_the_forwards_and_the_layers_in_module_order() -> None:
    """One forward for the order, and the whole set for every stage but the first."""
    model, x = Residual(blocks=2), correlated(64, 32, seed=0)
    calibration = replayed(model, list(x.split(16)))
    for how, stages in ((Sequential.none, 0), (Sequential.blocks, 4), (Sequential.inputs, 6)):
        quant, ran = copy.deepcopy(model), []
        quant.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        report = Gptq(sequential=how).quantize(quant, calibration=calibration, bits=bits(4, 8))
        expected = 1 + 4 * (stages - 1) if stages else 0
        assert report.replay_forwards == len(ran) == expected
        names = [entry["name"] for entry in report.layers_quantized]
        assert names == list(linear_layers(model))
        assert all(isinstance(m, QuantLinear) for m in (quant.first, quant.last))


class Counted(Residual):
    """A Residual that counts its whole forwards, and may leave a block out of one."""

    def __init__(self, *, leaves_out: bool = False) -> None:
        super().__init__(blocks=3)
        self.leaves_out, self.called, self.ended = leaves_out, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.called += 1
        x = self.first(self.first(x))  # twice in every forward
        for number, block in enumerate(self.blocks):
            if not (self.leaves_out and number == 1 and self.called % 2):
                x = x + block["down"](torch.nn.functional.silu(block["up"](x)))
        self.ended += 1
        return self.last(x)


@pytest.mark.parametrize("method", [Gptq(sequential=Sequential.blocks), Qronos()])
def test_forwards_end_where_the_stage_has_seen_its_inputs(
    method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same denoiser bit for bit as from whole forwards."""
    x = correlated(64, 32, seed=0)
    calibration = replayed(Counted(), list(x.split(16)))
    quick, slow = Counted(), Counted()
    report = method.quantize(quick, calibration=calibration, bits=bits(4, 8))
    assert quick.ended == 1 + 4  # the order, and four batches up to the input of `last`
    assert "forward" not in vars(quick)
    monkeypatch.setattr(sequential, "is_steady", lambda **_: False)
    whole = method.quantize(slow, calibration=calibration, bits=bits(4, 8))
    assert slow.ended == 1 + 4 * 4
    assert report == whole
    for name, value in slow.state_dict().items():
        assert torch.equal(value, quick.state_dict()[name]), name


def test_forwards_that_leave_a_layer_out_run_to_their_ends() -> None:
    x = torch.randn(64, 32, generator=generator(0))
    model = Counted(leaves_out=True)
    calibration = replayed(model, list(x.split(16)))
    assert calibration.statistics["blocks.1.up"].calls == 2
    model.called, model.ended = 0, 0
    Gptq(sequential=Sequential.blocks).quantize(model, calibration=calibration, bits=bits(4, 8))
    assert model.ended == 1 + 4 * 4


def test_a_layer_that_one_forward_misses_makes_forwards_unsteady() -> None:
    assert sequential.is_steady(once={"a": 1, "b": 2}, calls={"a": 10, "b": 20})
    assert not sequential.is_steady(once={"a": 1, "b": 2}, calls={"a": 10, "b": 10})
    assert not sequential.is_steady(once={"a": 1}, calls={"a": 10, "b": 1})


def test_layers_that_are_kept_take_no_run() -> None:
    model, x = Residual(blocks=2), correlated(64, 32, seed=0)
    calibration = replayed(model, [x])
    how = bits(4, 8, keep=["blocks.1.*", "last"])
    report = quantize_layers(
        copy.deepcopy(model),
        calibration=calibration,
        bits=how,
        recipe=LayerRecipe(sequential=Sequential.blocks),
    )
    assert report.replay_forwards == 2
    assert len(report.layers_kept) == 3


def test_without_inputs_it_says_what_to_do() -> None:
    model, x = Two(), correlated(64, 24, seed=0)
    method = Gptq(sequential=Sequential.blocks)
    assert method.needs().replay
    assert not Gptq().needs().replay
    with pytest.raises(ValueError, match=r"sequential=blocks runs.*set calibration.replay, or"):
        method.quantize(model, calibration=calibrate(model, [x]), bits=bits(4, 8))


@pytest.mark.parametrize("rounding", list(Rounding))
def test_segquant_in_sequence(rounding: Rounding) -> None:
    """Static scales and alphas too come from what the quantized layers before give."""
    model, batches, graph = denoisers.sd3()
    calibration = replace(replayed(model, batches), graph=graph)
    outputs = []
    for how in (Sequential.none, Sequential.blocks):
        quant, method = copy.deepcopy(model), SegQuant(rounding=rounding, sequential=how)
        report = method.quantize(quant, calibration=calibration, bits=bits(4, 8))
        assert len(report.layers_quantized) == len(calibration.statistics)
        assert method.needs().replay == any("sequential" in one for one in report.elements)
        with torch.no_grad():
            outputs.append(quant(**batches[0])[0])
    assert bool(outputs[1].isfinite().all())
    assert not torch.equal(*outputs)


def test_folding_mixed_bits_and_sequence_go_together() -> None:
    """Folding last changes no output; layers of one input but unlike widths share no vector."""
    model, batches, _ = denoisers.sd3()
    calibration = replace(replayed(model, batches), graph=analyze(model, batches[0]))
    how = replace(bits(4, 8, fine=True), mixed_bits=[8], mixed_budget=6.5)
    outputs, at_run_time = [], []
    for fold in (False, True):
        quant = copy.deepcopy(model)
        method = SegQuant(
            seg_linear=False, dual_scale=False, fold=fold, sequential=Sequential.blocks
        )
        report = method.quantize(quant, calibration=calibration, bits=how)
        assert report.replay_forwards > 0
        assert {entry["weight"][:4] for entry in report.layers_quantized} == {"int4", "int8"}
        at_run_time.append(sum(e["smoothing_at_run_time"] for e in report.layers_quantized))
        with torch.no_grad():
            outputs.append(quant(**batches[0])[0])
    assert at_run_time[1] < at_run_time[0]
    with torch.no_grad():
        exact = model(**batches[0])[0]
    errors = [float((out - exact).square().sum() / exact.square().sum()) for out in outputs]
    assert max(errors) < 2 * min(errors) < 0.1
