"""Smoothing folded into what makes a layer's input: the same denoiser, nothing left at run time."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.fold_smoothing import fold_smoothing
from segquant.core.layer_pass import quantize_layers
from segquant.core.linear import QuantLinear
from segquant.core.lowrank import LowRankSettings
from segquant.core.method_interface import QuantizationReport
from segquant.core.recipe import LayerRecipe
from segquant.core.rounding import Rounding
from segquant.core.schemes import Bits
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from segquant.graph import Fold, FoldPart, analyze
from tests.unit.core import denoisers
from tests.unit.core.helpers import bits, calibrate, generator, power_ratio

Model = Callable[[], tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]]
FIXED = SmoothingSettings(mode=SmoothingMode.fixed, alpha=0.6)


def quantized(
    model: nn.Module, batches: list[Any], *, how: Bits, recipe: LayerRecipe
) -> tuple[nn.Module, QuantizationReport]:
    graph = analyze(model, batches[0] if isinstance(batches[0], dict) else {"x": batches[0]})
    copied = copy.deepcopy(model)
    calibration = calibrate(model, batches, graph=graph)
    return copied, quantize_layers(copied, calibration=calibration, bits=how, recipe=recipe)


def without_the_fold(
    monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any
) -> tuple[nn.Module, QuantizationReport]:
    """The same vectors, applied at run time."""
    with monkeypatch.context() as patch:
        patch.setattr("segquant.core.layer_pass.fold_smoothing", lambda *_: (set(), []))
        return quantized(*args, **kwargs)


def disturbed(model: nn.Module) -> nn.Module:
    """Norm weights and modulations that are not what they are initialised to."""
    for number, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(number))
    return model


@pytest.mark.parametrize("make", [denoisers.sd3, denoisers.flux, denoisers.unet])
@pytest.mark.parametrize("activation_bits", [16, 8])
def test_a_folded_denoiser_is_the_same(
    make: Model, activation_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches, _ = make()
    disturbed(model)
    recipe = LayerRecipe(smoothing=FIXED, fold=True, low_rank=LowRankSettings(rank=2))
    how = bits(8, activation_bits)
    apart, _ = without_the_fold(monkeypatch, model, batches, how=how, recipe=recipe)
    together, report = quantized(model, batches, how=how, recipe=recipe)
    at_run_time = {e["name"] for e in report.layers_quantized if e["smoothing_at_run_time"]}
    folded = {e["name"] for e in report.layers_quantized} - at_run_time
    assert len(folded) >= 6
    assert at_run_time
    for name in folded:
        before, after = apart.get_submodule(name), together.get_submodule(name)
        assert isinstance(before, QuantLinear)
        assert isinstance(after, QuantLinear)
        assert before.smoothing is not None
        assert after.smoothing is None
        assert torch.equal(before.codes, after.codes)
    with torch.no_grad():
        exact, expected, found = (m(**batches[0])[0] for m in (model, apart, together))
    # With 8 bits a code may flip where float rounding moves a value across a boundary.
    limit = 1e-9 if activation_bits == 16 else 0.1 * power_ratio(expected, exact)
    assert power_ratio(found, expected) <= limit


def test_what_is_in_front_of_a_folded_layer_changes() -> None:
    model, batches, _ = denoisers.unet()
    recipe = LayerRecipe(smoothing=FIXED, fold=True)
    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    together, _ = quantized(model, batches, how=bits(), recipe=recipe)
    assert not torch.equal(
        together.get_submodule(norm).weight,  # type: ignore[arg-type]
        model.get_submodule(norm).weight,  # type: ignore[arg-type]
    )
    gate = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    proj = together.get_submodule(gate)
    assert isinstance(proj, QuantLinear)
    assert proj.row_factors is not None
    half = proj.out_features // 2
    assert bool((proj.row_factors[:half] != 1).any())
    assert bool((proj.row_factors[half:] == 1).all())


def test_layers_of_one_input_share_a_vector_that_sees_all_their_weights() -> None:
    model, batches, _ = denoisers.unet()
    recipe = LayerRecipe(smoothing=FIXED, fold=True)
    names = [f"mid_block.attentions.0.transformer_blocks.0.attn1.to_{n}" for n in "qkv"]
    together, report = quantized(model, batches, how=bits(), recipe=recipe)
    entries = {e["name"]: e for e in report.layers_quantized}
    assert all(entries[name]["smoothing_vectors"] == 1 for name in names)
    seen = calibrate(model, batches).statistics[names[0]]
    weights = torch.cat([model.get_submodule(n).weight for n in names])  # type: ignore[misc]
    factors = seen.amax.pow(0.6) / weights.abs().amax(0).pow(0.4)
    norm = names[0].replace("attn1.to_q", "norm1")
    moved = model.get_submodule(norm).weight / together.get_submodule(norm).weight  # type: ignore
    power = (factors / moved).mean()
    torch.testing.assert_close(moved * power, factors)
    assert float(power.log2()) == pytest.approx(round(float(power.log2())), abs=1e-4)
    assert float(moved.amax()) <= 1.0 + 1e-6


def test_a_kept_neighbour_leaves_the_smoothing_at_run_time() -> None:
    model, batches, _ = denoisers.sd3()
    recipe = LayerRecipe(smoothing=FIXED, fold=True)
    how = bits(keep=["*attn.to_k"])
    together, report = quantized(model, batches, how=how, recipe=recipe)
    entries = {e["name"]: e for e in report.layers_quantized}
    assert entries["transformer_blocks.0.attn.to_q"]["smoothing_at_run_time"]
    assert not entries["transformer_blocks.0.attn.add_q_proj"]["smoothing_at_run_time"]
    assert any("attn.to_q" in line and "not quantized" in line for line in report.left_out)
    kept = together.get_submodule("transformer_blocks.0.attn.to_k")
    assert torch.equal(kept.weight, model.get_submodule("transformer_blocks.0.attn.to_k").weight)  # type: ignore[arg-type]


def test_a_folded_denoiser_is_saved_and_loaded(tmp_path: Any) -> None:
    model, batches, _ = denoisers.unet()
    recipe = LayerRecipe(smoothing=FIXED, fold=True, rounding=Rounding.gptq)
    together, report = quantized(model, batches, how=bits(4, 8), recipe=recipe)
    save_quantized(together, tmp_path / "q", report)
    loaded, again = load_quantized(denoisers.unet()[0], tmp_path / "q")
    assert again == report
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0])[0], together(**batches[0])[0])


class Modulated(nn.Module):
    """An adaptive norm before a linear; `extreme` channels want factors far from 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.modulation = nn.Linear(8, 64)
        self.proj = nn.Linear(32, 16)
        self.proj.weight.data[:, 0] *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        shift, scale = self.modulation(x[:, 0, :8]).chunk(2, -1)
        normed = F.layer_norm(x, (32,))
        return self.proj(normed * (1 + scale[:, None]) + shift[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folding_into_an_adaptive_norm_keeps_half_precision(dtype: torch.dtype) -> None:
    """With s above 1, 1 + ((1 + scale) / s - 1) would lose log2(s) bits of what it is."""
    model = Modulated().to(dtype)
    x = torch.randn(4, 6, 32, generator=generator(0)).to(dtype)
    exact = Modulated().double()
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    recipe = LayerRecipe(smoothing=FIXED, fold=True)
    together, report = quantized(model, [x], how=bits(8, 16, fine=True), recipe=recipe)
    assert [e["smoothing_at_run_time"] for e in report.layers_quantized] == [True, False]
    with torch.no_grad():
        reference = exact(x.double())
        plain = power_ratio(model(x).double(), reference)
        found = power_ratio(together(x).double(), reference)
        rounded, _ = quantized(
            exact.float(), [x.float()], how=bits(8, 16, fine=True), recipe=recipe
        )
        quantization = power_ratio(rounded(x.float()).double(), reference)
    assert found <= 2 * (plain + quantization)


def test_nothing_is_changed_where_a_value_would_overflow() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    model[0].weight.data[:] = 6e4
    x = torch.rand(5, 4, generator=generator(1)).half() * 1e-3
    calibration = calibrate(model, [x])
    copied = copy.deepcopy(model)
    recipe = LayerRecipe(smoothing=SmoothingSettings(mode=SmoothingMode.fixed, alpha=0.5))
    quantize_layers(copied, calibration=calibration, bits=bits(8, 8, keep=["0"]), recipe=recipe)
    quant = copied[1]
    assert isinstance(quant, QuantLinear)
    assert quant.smoothing is not None
    quant.smoothing = torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    part = FoldPart(kind="rows", name="0", start=0, size=4, feature=0)
    before = {name: value.clone() for name, value in copied.state_dict().items()}
    folded, reasons = fold_smoothing(copied, [Fold(layers=("1",), parts=(part,))])
    assert not folded
    assert "overflow in torch.float16" in reasons[0]
    after = copied.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
