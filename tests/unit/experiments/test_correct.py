"""PTQD's variance part on a stochastic sampler: the factor, the formula, and a whole cell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from baselines.ptqd import Ptqd
from experiments.sampling.correct import corrected_noise, note_variance
from segquant.core import Calibration
from tests.conftest import Answer

STEPS, ERROR, K = 4, 0.05, 0.1


def scheduler(**changes: object) -> DDPMScheduler:
    made = DDPMScheduler(clip_sample=False, **changes)
    made.set_timesteps(STEPS)
    return made


def learned(**settings: bool) -> SimpleNamespace:
    """A corrector that found the same at every step, on the scheduler's timesteps."""
    corrector = Ptqd(**settings).corrector(calibration=Calibration(statistics={}, forwards=0))
    corrector.k_S = torch.full((STEPS,), K)
    corrector.mean_SC = torch.zeros(STEPS, 4)
    corrector.variance_SC = torch.full((STEPS, 4), ERROR)
    times = tuple(float(t) for t in scheduler().timesteps)
    return SimpleNamespace(corrector=corrector, timesteps=times)


def noted(attached: SimpleNamespace, made: DDPMScheduler) -> tuple[list[str], list[str]]:
    """What the record has of the variance part: done, and left out."""
    lists: tuple[list[str], list[str]] = ([], [])
    note_variance(attached.corrector, made, elements=lists[0], left_out=lists[1])
    return lists


def step(made: DDPMScheduler, t: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    x = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    return made.step(e, t, x, generator=torch.Generator().manual_seed(0)).prev_sample


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_the_noise_loses_what_the_prediction_brings(kind: str) -> None:
    """c_t is taken from the sampler itself: how far its step moves with the prediction."""
    made = scheduler(variance_type=kind)
    zero = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    for t in made.timesteps:
        coefficient = float((step(made, t, zero) - step(made, t, zero + 1)).mean())
        own = float(made._get_variance(t))
        expected = max(0.0, own - coefficient**2 * ERROR / (1 + K) ** 2)
        with corrected_noise(SimpleNamespace(scheduler=made), learned()):
            assert float(made._get_variance(t)) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert float(made._get_variance(t)) == own


def test_where_it_does_not_apply_it_is_said_and_nothing_is_touched() -> None:
    for settings, changes in (
        ({"variance": False}, {}),
        ({}, {"prediction_type": "v_prediction"}),
        ({}, {"variance_type": "learned_range"}),
    ):
        made = scheduler(**changes)
        with corrected_noise(SimpleNamespace(scheduler=made), learned(**settings)):
            assert "_get_variance" not in vars(made)
        done, missing = noted(learned(**settings), made)
        assert done == []
        assert missing == [] if settings else "adds no noise" in missing[0]
    done, missing = noted(learned(), scheduler())
    assert "DDPMScheduler" in done[0]
    assert missing == []


def test_a_cell_on_a_stochastic_sampler(
    zoo: Path, tmp_path: Path, segbench: Callable[..., Answer], small: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "ddpm"
    shutil.copytree(zoo / "tiny_unet", folder)
    DDPMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDPMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    line = small("tiny_unet", f"model.path={folder}", f"out={tmp_path / 'out'}", "method=ptqd")
    found = {}
    for variance in ("true", "false"):
        answer = segbench(
            "run", *line, "bits=w4a4_int_tensor", f"method.variance={variance}", "--json"
        )
        assert answer.status == 0, answer.err
        (record,) = answer.records
        found[variance] = record
    notes = found["true"]["method_elements"]["included"]
    assert any("variance" in line and "DDPMScheduler" in line for line in notes)
    assert found["true"]["metrics"]["psnr"] != found["false"]["metrics"]["psnr"]
