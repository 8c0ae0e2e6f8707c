"""A row has an element only where a layer has it; otherwise it is left out, with the reason."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.config.compose import build, compose_config
from experiments.config.places import options
from segquant.core import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.method_interface import QuantizationReport
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder
from segquant.graph import analyze
from tests.unit.graph.test_conditioning import small, wan, z_image

DENOISERS = {"sd3": small("sd3"), "wan": wan, "z_image": z_image}
TIMES = {"sd3": (900.0, 200.0), "wan": (900.0, 200.0), "z_image": (0.1, 0.8)}
Given = tuple[nn.Module, Calibration]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Given]:
    """Small stock denoisers with random weights, each with one calibration."""
    torch.manual_seed(0)
    return {name: _calibrated(name, tmp_path_factory.mktemp(name)) for name in DENOISERS}


def _calibrated(name: str, folder: Path) -> Given:
    model, inputs = DENOISERS[name]()
    model.eval()
    key = "t" if name == "z_image" else "timestep"
    calls = [inputs | {key: torch.full((2,), time)} for time in TIMES[name]]
    recorder, steps = StatisticsRecorder(model, gram=True, sample_rows=64), StepRecorder(model)
    with torch.no_grad(), recorder, steps, CallRecorder(model, folder, cap_bytes=2**24):
        for call in calls:
            model(**call)

    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        with torch.no_grad():
            for call in islice(every, calls):
                denoiser(**call)

    every = calls
    return model, Calibration(
        statistics=recorder.statistics(),
        forwards=recorder.forwards,
        graph=analyze(model, inputs),
        replay=replay,
        steps=steps.statistics(),
        captured=CapturedCalls.load(folder),
    )


def quantized(given: Given, method: str, bits: str, *changes: str) -> QuantizationReport:
    config = build(
        compose_config([f"method={method}", f"bits={bits}", *changes]), method_name=method
    )
    model, calibration = copy.deepcopy(given[0]), config.method.needs().of(given[1])
    torch.manual_seed(0)
    return config.method.quantize(model, calibration=calibration, bits=config.bits)


LEARNED = ("method.iterations=4", "method.calls=1")
QUICK = {"svdquant": ("method.iterations=1", "method.smooth_grids=2")} | dict.fromkeys(
    ("adaround", "qdiffusion", "ptq4dm", "ptq4dit"), LEARNED
)
QUICK["signround"] = ("method.iterations=3",)
QUICK["svdquant_signround"] = (*QUICK["svdquant"], "method.signround_iterations=3")

# method, bits, denoiser, an element that no layer has, a word of the reason
ABSENT = [
    ("svdquant", "w4a4_nvfp4", "sd3", "unsigned codes after GELU by a shift", "no integer inputs"),
    ("svdquant", "w8a16_int", "sd3", "modulation with inputs in 16 bit", "leaves all so"),
    ("segquant_a", "w4a4_nvfp4", "sd3", "DualScale", "has one scale"),
    ("segquant_a", "w8a16_int", "sd3", "DualScale", "16 bit"),
    ("segquant_a", "w8a8_int8", "z_image", "attention heads as segments", ""),
    ("dmq_les", "w4a8_int", "sd3", "power-of-two scaling", "no static common step"),
    ("adaround", "w4a8_int", "sd3", "learned static steps", "no activation has static steps"),
    ("mixdq", "w8a16_int", "sd3", "inputs of the most sensitive", "no input is one of integers"),
    ("orbitquant", "w8a16_int", "sd3", "codebooks for inputs", "16 bit"),
    ("rtn", "w4a4_lloyd", "sd3", "range from the largest magnitude", "another range rule"),
    ("segquant_a", "w4a4_lloyd", "sd3", "DualScale", "root mean square"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "bits", "denoiser", "element", "reason"), ABSENT)
def test_what_no_layer_has_is_left_out(
    given: dict[str, Given], method: str, bits: str, denoiser: str, element: str, reason: str
) -> None:
    report = quantized(given[denoiser], method, bits, *QUICK.get(method, ()))
    assert not [one for one in report.elements if element in one]
    assert [one for one in report.left_out if element in one and reason in one]


# method, bits, denoiser, an element, the layers that have it
PRESENT = [
    ("svdquant", "w4a4_int", "wan", "modulation with inputs in 16 bit", "time_proj"),
    ("svdquant", "w4a4_int", "z_image", "modulation with inputs in 16 bit", "adaLN"),
    ("svdquant", "w4a4_int", "sd3", "modulation with inputs in 16 bit", "norm1.linear"),
    ("tfmq_fsc", "w8a8_int8", "wan", "finite-set calibration", "time_embedder.linear_1"),
    ("tfmq_fsc", "w8a8_int8", "z_image", "finite-set calibration", "t_embedder.mlp.2"),
    ("segquant_a", "w8a8_int8", "sd3", "DualScale", "norm1.linear"),
    ("adaround", "w8a8_int8", "sd3", "learned static steps", "attn.to_q"),
    # The sines and cosines of a timestep are a concatenation.
    ("qdiffusion", "w8a8_int8", "sd3", "split quantizers", "timestep_embedder.linear_1"),
    ("dmq_les", "w8a8_int8", "sd3", "power-of-two scaling", "timestep_embedder.linear_1"),
    ("orbitquant", "w4a4_int", "sd3", "modulation by integer weights alone", "norm1.linear"),
    ("orbitquant", "w4a4_int", "z_image", "Lloyd-Max codebooks for weights", "to_q"),
    ("convrot", "w8a8_int8_token", "sd3", "regular Hadamard transform", "attn.to_q"),
    ("permuquant", "w4a4_nvfp4", "sd3", "channels sorted", "timestep_embedder.linear_1"),
]


@pytest.mark.parametrize(("method", "bits", "denoiser", "element", "layer"), PRESENT)
def test_what_a_layer_has_is_listed_with_it(
    given: dict[str, Given], method: str, bits: str, denoiser: str, element: str, layer: str
) -> None:
    report = quantized(given[denoiser], method, bits, *QUICK.get(method, ()))
    (line,) = [one for one in report.elements if element in one]
    layers = report.layers_quantized
    having = [one["name"] for one in layers if any(element in own for own in one["elements"])]
    assert [name for name in having if layer in name]
    if len(having) < len(layers):
        assert f"({len(having)} of {len(layers)} Linears)" in line


def test_without_a_graph_it_is_said(given: dict[str, Given]) -> None:
    model, calibration = given["wan"]
    unread = analyze(Unreadable().to("meta"), {"x": torch.ones(2, 4)}, on_error="unsegmented")
    blind = Calibration(
        statistics=calibration.statistics,
        forwards=1,
        steps=calibration.steps,
        graph=unread,
    )
    report = quantized((model, blind), "svdquant", "w4a4_int", *QUICK["svdquant"])
    (line,) = [one for one in report.left_out if "modulation with inputs in 16 bit" in one]
    assert "stopped at" in line
    report = quantized((model, blind), "tfmq_fsc", "w8a8_int8")
    assert [one for one in report.left_out if "finite-set" in one and "stopped at" in one]
    with pytest.raises(ValueError, match=r"static graph: .*stopped at"):
        quantized((model, blind), "segquant_a", "w8a8_int8")


class Unreadable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x[x[:, 0] > 0])


BITS = {"orbitquant": ("w4a4_int",)}  # codebooks in place of integers, over rows


@pytest.mark.parametrize("method", sorted(options("method")))
def test_no_method_claims_a_layers_element_without_a_layer(
    method: str, given: dict[str, Given]
) -> None:
    """Whatever names a number of Linears names at least one; nothing is both done and not."""
    if method.startswith("peer_"):
        pytest.skip("a library's row says what the library does")
    ran = 0
    for bits in BITS.get(method, ("w4a4_nvfp4", "w8a8_int8")):
        config = build(compose_config([f"method={method}", f"bits={bits}"]), method_name=method)
        if config.method.unsupported(config.bits) is not None:
            continue
        report = quantized(given["z_image"], method, bits, *QUICK.get(method, ()))
        listed = {name for one in report.layers_quantized for name in one["elements"]}
        names = [one.split(" (")[0] for one in report.elements]
        left_out = [one.split(": ")[0] for one in report.left_out]
        assert not set(names) & set(left_out)
        assert not listed & set(left_out)
        ran += 1
    assert ran or method in ("fp", "noise_floor")
