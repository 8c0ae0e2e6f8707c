"""Every method of conf/ at every bits of conf/ on small denoisers, from one calibration each."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.config.compose import build, compose_config
from experiments.config.places import options
from segquant.core import Calibration
from segquant.core.checkpoint import load_quantized, save_quantized
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.recorded_calls import CallRecorder, CapturedCalls
from segquant.core.stepwise import StepRecorder
from segquant.graph import analyze
from tests.unit.core.denoisers import ALL

FAMILIES = sorted(ALL)
TIMESTEPS = (900.0, 600.0, 300.0, 50.0)


@pytest.fixture(scope="module", params=FAMILIES)
def given(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A denoiser, its one calibration with all that any method asks for, and its batches."""
    model, batches, _ = ALL[request.param]()
    for batch, timestep in zip(batches, TIMESTEPS, strict=True):
        given = batch["timestep"]
        batch["timestep"] = torch.full_like(torch.as_tensor(given, dtype=torch.float32), timestep)
    calls = tmp_path_factory.mktemp("calls")
    recorder, steps = StatisticsRecorder(model, gram=True, sample_rows=64), StepRecorder(model)
    with torch.no_grad(), recorder, steps, CallRecorder(model, calls, cap_bytes=2**24):
        for batch in batches:
            model(**batch)

    def replay(denoiser: nn.Module, *, calls: int | None = None) -> None:
        with torch.no_grad():
            for batch in islice(batches, calls):
                denoiser(**batch)

    calibration = Calibration(
        statistics=recorder.statistics(),
        forwards=recorder.forwards,
        graph=analyze(model, batches[0]),
        replay=replay,
        steps=steps.statistics(),
        captured=CapturedCalls.load(calls),
    )
    return request.param, model, calibration, batches


FEW_BITS = (
    "w8a8_int8",
    "w8a8_int8_token",
    "w4a8_int",
    "w4a4_int_group32",
    "w8a8_fp8",
    "w4a4_nvfp4",
)

# Learned rounding is slow; what it learns is tested elsewhere.
FEW_ITERATIONS = {
    "signround": ("method.iterations=3",),
    "svdquant_signround": (
        "method.signround_iterations=3",
        "method.iterations=2",
        "method.smooth_grids=2",
    ),
}


def _bits(method: str, family: str) -> list[str]:
    """All of them on one family, another for the next method; some on the others, to save time."""
    turn = _methods().index(method) % len(FAMILIES)
    return options("bits") if FAMILIES[turn] == family else list(FEW_BITS)


def _methods() -> list[str]:
    return [name for name in options("method") if name not in ("fp", "noise_floor")]


@pytest.mark.parametrize("name", _methods())
def test_a_method_does_every_bits_it_supports(
    given: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or says in one line why not; and what it makes comes back from disk bit for bit."""
    for constant, value in (("QUICK_ITERATIONS", 3), ("QUICK_STEP_ITERATIONS", 2)):
        monkeypatch.setattr(f"baselines.reconstruction.{constant}", value)
    monkeypatch.setattr("baselines.dmq_les.QUICK_ITERATIONS", 3)
    monkeypatch.setattr("baselines.spinquant.QUICK_STEPS", 2)
    family, model, calibration, batches = given
    done = 0
    for bits_name in _bits(name, family):
        words = [f"method={name}", f"bits={bits_name}", *FEW_ITERATIONS.get(name, ())]
        config = build(compose_config(words), method_name=name)
        reason = config.method.unsupported(config.bits)
        if reason is not None:
            assert len(reason) > 20
            assert "\n" not in reason
            continue
        made = copy.deepcopy(model)
        try:
            report = config.method.quantize(made, calibration=calibration, bits=config.bits)
        except ValueError as error:
            refused = str(error)
        else:
            refused = ""
        if refused:
            # These denoisers are narrower than a group; the message says what to do.
            assert "multiple of group_size" in refused or "budget" in refused
            continue
        with torch.no_grad():
            out = made(**batches[1])[0]
            exact = model(**batches[1])[0]
        assert bool(out.isfinite().all()), bits_name
        if config.bits.quantized:
            assert not torch.equal(out, exact), bits_name
            assert report.elements
        if report.execution != "simulated":
            continue
        save_quantized(made, tmp_path / bits_name, report)
        again, _ = load_quantized(copy.deepcopy(model), tmp_path / bits_name)
        with torch.no_grad():
            assert torch.equal(again(**batches[1])[0], out), bits_name
        done += 1
    assert done or name.startswith("peer_")
