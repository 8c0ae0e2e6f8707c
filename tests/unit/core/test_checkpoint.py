"""Checkpoints: bit-equal, whole or absent, and refused where they do not belong."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.files import write_folder
from segquant.core.layer_pass import quantize_layers
from segquant.core.lowrank import LowRankSettings
from segquant.core.method_interface import QuantizationReport
from segquant.core.recipe import LayerRecipe
from segquant.core.segments import LayerShape
from segquant.core.smoothing import SmoothingMode, SmoothingSettings
from tests.unit.core.helpers import bits, calibrate, generator


class Small(nn.Module):
    """Two Linears, one of them in two places, and parameters that are not quantized."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 12)
        self.down = nn.Linear(12, width, bias=False)
        self.again = self.up

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.silu(self.up(self.norm(x)) + self.again(x)))


def quantized() -> tuple[Small, Tensor, QuantizationReport]:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(3, 5, 8, generator=generator(0))
    recipe = LayerRecipe(
        smoothing=SmoothingSettings(mode=SmoothingMode.search),
        low_rank=LowRankSettings(rank=2),
        dual_scale=True,
    )
    report = quantize_layers(
        model,
        calibration=calibrate(model, [x]),
        bits=bits(4, 8),
        recipe=recipe,
        shape_of=lambda name, linear: LayerShape(
            output=(linear.out_features - 3, 3),
            input=(3, linear.in_features - 3),
            one_sided=(False, True),
        ),
        elements=["something"],
    )
    return model, x, report


def test_bit_equal_in_a_fresh_denoiser(tmp_path: Path) -> None:
    model, x, report = quantized()
    save_quantized(model, tmp_path / "saved", report)
    torch.manual_seed(1)
    loaded, found = load_quantized(Small(), tmp_path / "saved")
    assert torch.equal(loaded(x), model(x))
    assert found == report
    assert loaded.up is loaded.again
    assert not any(path.suffix in {".pt", ".pkl", ".bin"} for path in tmp_path.rglob("*"))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_half_precision_denoiser_round_trips(tmp_path: Path) -> None:
    model, x, report = quantized()
    model.to(torch.bfloat16)
    save_quantized(model, tmp_path / "saved", report)
    loaded, _ = load_quantized(Small(), tmp_path / "saved")
    assert torch.equal(loaded(x.bfloat16()), model(x.bfloat16()))


def test_saving_again_replaces(tmp_path: Path) -> None:
    model, x, report = quantized()
    for _ in range(2):
        save_quantized(model, tmp_path / "saved", report)
    assert torch.equal(load_quantized(Small(), tmp_path / "saved")[0](x), model(x))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_another_architecture_is_refused_and_left_alone(tmp_path: Path) -> None:
    model, _, report = quantized()
    save_quantized(model, tmp_path / "saved", report)
    other = Small(width=10)
    with pytest.raises(
        ValueError, match="down is a Linear 12 -> 8 of a Small; the given Small has 12 -> 10"
    ):
        load_quantized(other, tmp_path / "saved")
    assert type(other.up) is type(other.down) is nn.Linear
    with pytest.raises(ValueError, match="has none of that name there"):
        load_quantized(nn.Sequential(), tmp_path / "saved")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_folder(tmp_path / "saved", tensors={}, manifest={"bad": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "other", tensors={"a": torch.ones(1)}, manifest={"kind": "something"})
    with pytest.raises(ValueError, match="holds a something, not a quantized denoiser"):
        load_quantized(Small(), tmp_path / "other")
