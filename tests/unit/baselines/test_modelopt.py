"""Model Optimizer's row against float64, and what it says where it cannot run."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.peers.modelopt import SVDQUANT_RANK, Algorithm, ModelOpt
from baselines.rtn import RoundToNearest
from experiments.config.compose import build, compose_config
from experiments.config.places import options
from segquant.core import Bits, Calibration
from tests.unit.baselines.timed import Timed, calibrated, calls
from tests.unit.core.helpers import power_ratio

FEATURES = 32
LAYERS = ("first", "block.up", "block.down")
ROWS = [
    (Algorithm.max, "w8a8_int8_channel"),
    (Algorithm.max, "w8a16_int"),
    (Algorithm.max, "w8a8_fp8"),
    (Algorithm.smoothquant, "w8a8_int8_channel"),
]


def bits_of(name: str) -> Bits:
    return copy.deepcopy(_bits_of(name))


@cache
def _bits_of(name: str) -> Bits:
    return build(compose_config(["method=fp", f"bits={name}"]), method_name="fp").bits


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there, a GPU is not."""
    monkeypatch.setattr("baselines.peers.library.find_spec", lambda name: name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("pretended")
def test_each_algorithm_has_the_bits_of_its_published_configs() -> None:
    found = {
        (algorithm, name)
        for algorithm in Algorithm
        for name in options("bits")
        if ModelOpt(algorithm=algorithm).unsupported(bits_of(name)) is None
    }
    assert found == set(ROWS)


@pytest.mark.usefixtures("pretended")
def test_what_it_lacks_is_one_line_with_a_way_out() -> None:
    smooth = ModelOpt(algorithm=Algorithm.smoothquant)
    assert smooth.unsupported(bits_of("w8a8_int8")) == (
        "Model Optimizer with algorithm=smoothquant has no int8 per_tensor static weights with "
        "int8 per_tensor static inputs through the interface used here (w8a8_int8); "
        "use w8a8_int8_channel"
    )
    for algorithm in (Algorithm.max, Algorithm.svdquant):
        assert ModelOpt(algorithm=algorithm).unsupported(bits_of("w4a4_nvfp4")) == (
            "Model Optimizer simulates nvfp4 in CUDA kernels alone and the denoiser is on a CPU "
            "(w4a4_nvfp4); run on a GPU"
        )
    percentile = bits_of("w8a8_fp8")
    percentile.weight = replace(percentile.weight, range_rule="percentile")
    assert "percentile" in str(ModelOpt().unsupported(percentile))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        ModelOpt(alpha=1.5)
    with pytest.raises(ValueError, match="capture_megabytes=0"):
        ModelOpt(capture_megabytes=0)


@pytest.mark.usefixtures("pretended")
def test_static_scales_need_stored_calls(tmp_path: Path) -> None:
    model, calibration = calibrated(tmp_path)
    for captured in (None, calibration.captured.within(10)):  # type: ignore[union-attr]
        calibration.captured = captured
        with pytest.raises(ValueError, match="stored calls and there are none"):
            ModelOpt().quantize(model, calibration=calibration, bits=bits_of("w8a8_fp8"))


def quantized(
    folder: Path, algorithm: Algorithm, bits: Bits, **settings: Any
) -> tuple[Timed, Timed, Calibration, Any]:
    pytest.importorskip("modelopt.torch.quantization")
    model, calibration = calibrated(folder, features=FEATURES)
    made = copy.deepcopy(model)
    method = ModelOpt(algorithm=algorithm, **settings)
    return model, made, calibration, method.quantize(made, calibration=calibration, bits=bits)


def int8(x: Tensor, amax: Tensor) -> Tensor:
    """Round to nearest on 127 steps a side."""
    return (x * 127 / amax).round().clamp(-127, 127) * amax / 127


def e4m3(x: Tensor, amax: Tensor) -> Tensor:
    """The nearest of all finite values of e4m3, the largest of which is at amax."""
    exponents = torch.arange(-6, 9).double()
    normal = torch.exp2(exponents)[:, None] * (1 + torch.arange(8).double() / 8)
    subnormal = torch.arange(8).double() * 2.0**-9
    positive = torch.cat([subnormal, normal.flatten()])
    positive = positive[positive <= 448]
    scaled = (x * 448 / amax).abs()
    nearest = (scaled[..., None] - positive).abs().argmin(-1)
    return positive[nearest] * x.sign() * amax / 448


def stated(layer: nn.Linear, row: tuple[Algorithm, str], amax_I: Tensor, *, alpha: float) -> Any:
    """The weight and the output's function in float64, from the float layer and input extremes."""
    algorithm, bits_name = row
    w, b, amax_I = layer.weight.double(), layer.bias.double(), amax_I.double()
    factor_I = torch.ones_like(amax_I)
    if algorithm is Algorithm.smoothquant:
        factor_I = amax_I**alpha / w.abs().amax(0) ** (1 - alpha)
    w, reach = w * factor_I, (amax_I / factor_I).max()
    if bits_name == "w8a8_fp8":
        w = e4m3(w, w.abs().max())
        return w, lambda x: e4m3(x.double(), reach) @ w.T + b
    w = int8(w, w.abs().amax(1, keepdim=True))
    if bits_name == "w8a16_int":
        return w, lambda x: x.double() @ w.T + b
    return w, lambda x: int8(x.double() / factor_I, reach) @ w.T + b


@pytest.mark.parametrize(
    ("row", "alpha"), [*((row, 1.0) for row in ROWS), (ROWS[-1], 0.3)], ids=str
)
def test_layers_are_what_float64_says(
    row: tuple[Algorithm, str], alpha: float, tmp_path: Path
) -> None:
    model, made, calibration, report = quantized(tmp_path, row[0], bits_of(row[1]), alpha=alpha)
    nearest = RoundToNearest().quantize(
        copy.deepcopy(model), calibration=calibration, bits=bits_of(row[1])
    )
    found = [entry["name"] for entry in report.layers_quantized]
    assert found == [entry["name"] for entry in nearest.layers_quantized] == list(LAYERS)
    for name in LAYERS:
        layer, own = model.get_submodule(name), made.get_submodule(name)
        seen = calibration.statistics[name]
        weight, output = stated(layer, row, seen.amax, alpha=alpha)
        with torch.no_grad():
            x = seen.sample_TI[:64]
            got, wanted = own.weight_quantizer(own.weight).double(), output(x)
            assert power_ratio(got, weight) < 1e-12, name
            # A value in the middle of two steps may fall to either in float32.
            assert power_ratio(own(x).double(), wanted) < 1e-8, name
            assert power_ratio(wanted, layer(x).double()) < 0.01


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].name}-{row[1]}")
def test_the_denoisers_error_is_that_of_its_bits(
    row: tuple[Algorithm, str], tmp_path: Path
) -> None:
    model, made, calibration, report = quantized(tmp_path, row[0], bits_of(row[1]))
    plain = copy.deepcopy(model)
    nearest = RoundToNearest().quantize(plain, calibration=calibration, bits=bits_of(row[1]))
    x, timestep = calls(FEATURES)[1]
    with torch.no_grad():
        exact = model(x, timestep)[0]
        error, reference = (power_ratio(m(x, timestep)[0], exact) for m in (made, plain))
    assert 0 < error < 3 * reference
    smoothing = 32 * 4 * FEATURES  # factors of the inputs: two of `features`, one of twice as many
    extra = smoothing / (5 * FEATURES**2) if row[0] is Algorithm.smoothquant else 0
    assert report.effective_bits_per_weight == nearest.effective_bits_per_weight + extra


def test_the_report_says_how_many_calls_it_calibrated_on(tmp_path: Path) -> None:
    bits = bits_of("w8a8_int8_channel")
    _, _, calibration, report = quantized(tmp_path, Algorithm.max, bits)
    assert "calibrated on 8 of the calibration's 8 calls" in report.elements
    assert report.replay_forwards == 8
    assert calibration.captured is not None
    calibration.captured = replace(calibration.captured, calls=calibration.captured.calls[:3])
    report = ModelOpt().quantize(Timed(FEATURES), calibration=calibration, bits=bits)
    assert "calibrated on 3 of the calibration's 8 calls" in report.elements
    assert report.replay_forwards == 3


def test_weights_alone_take_no_forward(tmp_path: Path) -> None:
    _, _, calibration, report = quantized(tmp_path, Algorithm.max, bits_of("w8a16_int"))
    assert report.replay_forwards == 0
    assert not [one for one in report.elements if "calls" in one]
    calibration.captured = None
    ModelOpt().quantize(Timed(FEATURES), calibration=calibration, bits=bits_of("w8a16_int"))


def test_kept_layers_are_exact_and_listed(tmp_path: Path) -> None:
    bits = replace(bits_of("w8a8_int8_channel"), keep=["block.*"])
    model, made, _, report = quantized(tmp_path, Algorithm.smoothquant, bits)
    assert [one["name"] for one in report.layers_kept] == ["block.up", "block.down"]
    x, _ = calls(FEATURES)[0]
    with torch.no_grad():
        assert torch.equal(made.block(x), model.block(x))
        assert not torch.equal(made.first(x), model.first(x))
    everything = replace(bits, keep=["*"])
    report = quantized(tmp_path / "all", Algorithm.max, everything)[3]
    assert report.layers_quantized == []


def test_nothing_of_the_library_goes_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what a verb prints: `--json` is read by programs."""
    quantized(tmp_path, Algorithm.smoothquant, bits_of("w8a8_int8_channel"))
    assert capsys.readouterr().out == ""


def test_defaults_are_the_librarys_own() -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization")
    assert mtq.INT8_SMOOTHQUANT_CFG["algorithm"] == "smoothquant"
    assert mtq.config.SmoothQuantCalibConfig().alpha == ModelOpt().alpha


def test_the_branchs_rank_is_the_librarys_own() -> None:
    mtq = pytest.importorskip("modelopt.torch.quantization")
    published = mtq.NVFP4_SVDQUANT_DEFAULT_CFG["algorithm"]
    assert published["lowrank"] == SVDQUANT_RANK
