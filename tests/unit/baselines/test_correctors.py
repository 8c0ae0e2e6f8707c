"""PTQD and TAC: closed forms, what they are hooked to, and latents of any shape."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.adaround import AdaRound
from baselines.corrected import CorrectedBase
from baselines.ptqd import Ptqd, PtqdCorrector, calibrated_variance
from baselines.rtn import RoundToNearest
from baselines.tac import Tac, TacCorrector
from segquant.core import Calibration, CorrectingMethod, Method, corrector_of
from segquant.core.correction import StepPair, attach_corrector, by_channel
from tests.unit.baselines.timed import calibrated
from tests.unit.core.helpers import bits, calibrate, correlated, generator, one

NOTHING = Calibration(statistics={}, forwards=0)
SHAPES = {"image": (6, 4, 5, 5), "sequence": (6, 25, 4)}  # four channels either way


def pair(shape: tuple[int, ...], *, seed: int, k: float = 0.2) -> StepPair:
    g = generator(seed)
    e = torch.randn(shape, generator=g)
    channels = torch.arange(4.0).reshape((1, 4, 1, 1) if len(shape) == 4 else (1, 1, 4))
    noise = (0.05 + 0.02 * channels) * torch.randn(shape, generator=g)
    x = torch.randn(shape, generator=g)
    return StepPair(
        reference=e,
        quantized=e + k * e + 0.1 * channels + noise,
        reference_input=x,
        quantized_input=x + 0.3 * channels + 0.01 * torch.randn(shape, generator=g),
    )


def channels_of(x: Tensor) -> np.ndarray:
    return by_channel(x).numpy()


def test_a_method_has_a_corrector_or_writes_nothing_of_it() -> None:
    assert isinstance(corrector_of(Ptqd(), calibration=NOTHING), PtqdCorrector)
    assert isinstance(corrector_of(Tac(), calibration=NOTHING), TacCorrector)
    plain = RoundToNearest()
    assert isinstance(plain, Method)
    assert not isinstance(plain, CorrectingMethod)
    assert corrector_of(plain, calibration=NOTHING) is None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_ptqd_is_the_regression(shape: tuple[int, ...]) -> None:
    pairs = [pair(shape, seed=n) for n in range(3)]
    corrector = Ptqd().corrector(calibration=NOTHING)
    for one_pair in pairs:
        corrector.observe(one_pair, step=0)
    corrector.fit()
    e = np.concatenate([channels_of(p.reference) for p in pairs], 1)
    d = np.concatenate([channels_of(p.quantized) for p in pairs], 1) - e
    k = np.polyfit(e.ravel(), d.ravel(), 1)[0]
    rest = d - k * e
    assert float(corrector.k_S[0]) == pytest.approx(k)
    assert corrector.mean_SC[0].tolist() == pytest.approx(rest.mean(1).tolist())
    assert corrector.variance_SC[0].tolist() == pytest.approx(rest.var(1).tolist())
    found = corrector(pairs[0].quantized, step=0)
    expected = (channels_of(pairs[0].quantized) - rest.mean(1)[:, None]) / (1 + k)
    np.testing.assert_allclose(channels_of(found), expected, rtol=1e-4, atol=1e-5)
    before = (pairs[0].quantized - pairs[0].reference).square().mean()
    assert (found - pairs[0].reference).square().mean() < 0.3 * before


def test_ptqds_k_is_not_negative_and_each_part_can_go() -> None:
    shrunk = pair(SHAPES["image"], seed=0, k=-0.3)
    corrector = Ptqd().corrector(calibration=NOTHING)
    corrector.observe(shrunk, step=0)
    corrector.fit()
    assert float(corrector.k_S[0]) == 0
    grown = pair(SHAPES["image"], seed=0)
    found = {}
    for name in ("correlation", "bias"):
        corrector = Ptqd(**{name: False}).corrector(calibration=NOTHING)
        corrector.observe(grown, step=0)
        corrector.fit()
        found[name] = corrector(grown.quantized, step=0)
        assert (float(corrector.k_S[0]) == 0) == (name == "correlation")
        assert bool((corrector.mean_SC == 0).all()) == (name == "bias")
    assert not torch.equal(found["correlation"], found["bias"])
    assert Ptqd(variance=False).corrector(calibration=NOTHING).noise_variance(step=0) is None


def test_the_samplers_variance_loses_the_quantizations_part() -> None:
    assert calibrated_variance(0.5, coefficient=0.3, error=2.0, factor=1.2) == pytest.approx(
        0.5 - 0.09 * 2 / 1.44
    )
    assert calibrated_variance(0.1, coefficient=1.0, error=2.0, factor=1.0) == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_tacs_factor_is_the_minimum(shape: tuple[int, ...], threshold: float) -> None:
    """Its own objective, evaluated in float64 around the factor found, is least there."""
    settings = Tac(threshold=threshold)
    corrector = settings.corrector(calibration=NOTHING)
    seen = pair(shape, seed=1)
    corrector.observe(seen, step=0)
    corrector.fit()
    e, found = seen.reference.double(), seen.quantized.double()
    mask = found.abs() >= threshold * found.abs().mean()

    def objective(k: Tensor) -> Tensor:
        k = k.reshape((1, 4, 1, 1) if e.ndim == 4 else (1, 1, 4))
        wrong = mask * (e - k * found).square()
        relative = sum(
            wrong[b].sum(dim=tuple(range(1, e.ndim - 1)) if e.ndim == 4 else 0)
            / e[b].square().mean()
            for b in range(len(e))
        )
        absolute = torch.from_numpy(channels_of(wrong)).sum(1) / e.square().mean()
        return settings.absolute_weight * absolute + settings.relative_weight * relative

    best = corrector.scale_SC[0]
    for change in (-1e-3, 1e-3):
        assert bool((objective(best + change) > objective(best)).all())
    kept = corrector(seen.quantized, step=0)[~mask]
    assert torch.equal(kept, seen.quantized[~mask])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tac_takes_the_drift_off_the_input(shape: tuple[int, ...]) -> None:
    pairs = [pair(shape, seed=n) for n in range(2)]
    corrector = Tac().corrector(calibration=NOTHING)
    for one_pair in pairs:
        corrector.observe(one_pair, step=0)
    corrector.fit()
    drift = [channels_of(p.quantized_input - p.reference_input).mean(1) for p in pairs]
    assert corrector.bias_SC[0].tolist() == pytest.approx(np.mean(drift, 0).tolist(), abs=1e-6)
    x = pairs[0].quantized_input
    moved = channels_of(x - corrector.correct_input(x, step=0)).mean(1)
    assert moved.tolist() == pytest.approx(np.mean(drift, 0).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "same_output", "same_input"),
    [
        ({"absolute_weight": 0.0}, False, True),
        ({"relative_weight": 5.0}, False, True),
        ({"threshold": 1.0}, False, True),
        ({"reconstruct": False}, False, True),
        ({"input_bias": False}, True, False),
    ],
    ids=str,
)
def test_tacs_settings_reach_the_computation(
    change: dict[str, Any], same_output: bool, same_input: bool
) -> None:
    # Samples of unlike power, so that the relative term weighs them otherwise.
    seen = pair(SHAPES["image"], seed=1)
    power = torch.linspace(0.1, 3, 6)[:, None, None, None]
    unlike = StepPair(
        reference=seen.reference * power,
        quantized=seen.quantized * power.sqrt(),
        reference_input=seen.reference_input,
        quantized_input=seen.quantized_input,
    )
    results = []
    for settings in (Tac(), Tac(**change)):
        corrector = settings.corrector(calibration=NOTHING)
        corrector.observe(unlike, step=0)
        corrector.fit()
        results.append(
            (corrector(unlike.quantized, step=0), corrector.correct_input(unlike.quantized, step=0))
        )
    assert torch.equal(results[0][0], results[1][0]) == same_output
    assert torch.equal(results[0][1], results[1][1]) == same_input


class Toy(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> Any:
        return {"sample": sample * 2} if return_dict else (sample * 2, "more")


@pytest.mark.parametrize("kind", [Ptqd, Tac])
def test_a_corrector_is_on_its_own_denoiser_alone_and_comes_off(kind: Any) -> None:
    shape = SHAPES["image"]
    corrector = kind().corrector(calibration=NOTHING)
    for step in range(2):
        corrector.observe(pair(shape, seed=step, k=0.1 + step), step=step)
    corrector.fit()
    restored = kind().corrector(calibration=NOTHING)
    restored.restore(corrector.tensors())
    corrected, other = Toy(), Toy()
    attached = attach_corrector(corrected, restored, timesteps=(9.0, 1.0))
    x = torch.randn(shape, generator=generator(3))
    for step, timestep in enumerate((8.0, 2.0)):  # the nearest of those that were learned
        plain = other(x, torch.tensor(timestep), return_dict=False)[0]
        out = corrected(x, timestep=torch.tensor(timestep), return_dict=False)
        given = corrector.correct_input(x, step=step)
        assert torch.equal(out[0], corrector(given * 2, step=step))
        assert out[1] == "more"
        assert torch.equal(plain, x * 2)
    attached.remove()
    assert torch.equal(corrected(x, torch.tensor(1.0), return_dict=False)[0], x * 2)


def test_a_reconstructed_base_is_adarounds_own(tmp_path: Path) -> None:
    model, given = calibrated(tmp_path)
    given.graph = {}
    how = bits(4, 8, fine=True)
    for kind in (Ptqd, Tac):
        made, alone = copy.deepcopy(model), copy.deepcopy(model)
        method = kind(base=CorrectedBase.adaround)
        report = method.quantize(made, calibration=given, bits=how)
        AdaRound().quantize(alone, calibration=given, bits=how)
        assert method.needs() == AdaRound().needs()
        assert "AdaRound on blocks" in report.elements
        assert not any("block reconstruction" in line for line in report.left_out)
        for one_tensor, other in zip(made.buffers(), alone.buffers(), strict=True):
            assert torch.equal(one_tensor, other)


def test_the_base_reaches_the_layers_and_its_gaps_are_told() -> None:
    model, x = one(16, 8), correlated(64, 16, seed=0, spread=1.0)
    calibration = calibrate(model, [x], graph=SimpleNamespace(folds=()))
    for kind in (Ptqd, Tac):
        found = {}
        for base in set(CorrectedBase) - {CorrectedBase.adaround}:
            made = one(16, 8)
            method = kind(base=base)
            report = method.quantize(made, calibration=calibration, bits=bits(4, 8))
            found[base] = made(x)
            assert any(base.name in line for line in report.left_out)
            assert method.needs().gram == (base is CorrectedBase.gptq)
        first, *others = found.values()
        assert not any(torch.equal(first, one_other) for one_other in others)
        assert "quantizes nothing" in (kind().unsupported(bits(16, 16)) or "")
        with pytest.raises(ValueError, match="rounds=0"):
            kind(rounds=0)


def test_rounds_are_the_correctors() -> None:
    assert isinstance(Ptqd(rounds=2).corrector(calibration=NOTHING), PtqdCorrector)
    assert Ptqd(rounds=2).corrector(calibration=NOTHING).rounds == 2
    tac = Tac(rounds=3).corrector(calibration=NOTHING)
    assert isinstance(tac, TacCorrector)
    assert tac.rounds == 3
    assert math.isclose(tac.settings.absolute_weight, 0.8)
