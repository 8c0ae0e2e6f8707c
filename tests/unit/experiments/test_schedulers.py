"""Another scheduler: made of the pipeline's own config, or refused with what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.datasets.interface import Prompt
from experiments.config.compose import build_cell
from experiments.errors import UserError
from experiments.sampling.pipelines import load_pipeline
from experiments.sampling.sample import sample
from experiments.sampling.schedulers import chosen_scheduler, scheduler_fields

PROMPTS = [Prompt(id=f"e{n}", text=f"a red circle {n}") for n in range(3)]


def _folder(root: Path, name: str, **config: Any) -> Path:
    (root / "scheduler").mkdir()
    index = {"_class_name": "X", "unet": ["diffusers", "UNet2DModel"]}
    index["scheduler"] = ["diffusers", name]
    (root / "model_index.json").write_text(json.dumps(index))
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return root


def _model(path: Path, **scheduler: Any) -> Any:
    model = build_cell(["model=folder", f"model.path={path}"], method_name="x").model
    model.scheduler = scheduler
    return model


def test_the_class_changes_and_the_models_own_settings_stay(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "DDIMScheduler", beta_start=0.003, clip_sample=False)
    assert chosen_scheduler(_model(folder), folder) is None
    made = chosen_scheduler(_model(folder, **{"class": "EulerDiscreteScheduler"}), folder)
    assert type(made).__name__ == "EulerDiscreteScheduler"
    assert made.config.beta_start == 0.003
    same = chosen_scheduler(_model(folder, timestep_spacing="trailing"), folder)
    assert type(same).__name__ == "DDIMScheduler"
    assert (same.config.timestep_spacing, same.config.clip_sample) == ("trailing", False)


def test_the_record_says_what_ran(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "DDIMScheduler", beta_start=0.003)
    assert scheduler_fields(_model(folder), folder) == {"beta_start": 0.003}
    said = scheduler_fields(_model(folder, **{"class": "LCMScheduler"}), folder)
    assert said["_class_name"] == "LCMScheduler"
    assert said["beta_start"] == 0.003
    json.dumps(said)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"class": "DDIMSheduler"}, "no such scheduler; did you mean DDIMScheduler"),
        ({"class": "UNet2DModel"}, "no such scheduler"),
        ({"beta_strat": 1}, "DDIMScheduler has no such setting; did you mean beta_start"),
        ({"eta": 1.0}, "give model.call.eta"),
        ({"class": "DPMSolverSDEScheduler"}, "one path for the whole batch"),
        ({"class": "CosineDPMSolverMultistepScheduler"}, "one path for the whole batch"),
        ({"class": "FlowMatchEulerDiscreteScheduler"}, "which follows no flow"),
        ({"beta_schedule": "no_such"}, "DDIMScheduler refuses its settings"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, scheduler: dict[str, Any], said: str
) -> None:
    folder = _folder(tmp_path, "DDIMScheduler")
    with pytest.raises(UserError, match=said):
        chosen_scheduler(_model(folder, **scheduler), folder)


def test_a_flow_is_followed_by_what_can(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "FlowMatchEulerDiscreteScheduler", shift=3.0)
    with pytest.raises(UserError, match=r"which follows a flow; choose a FlowMatch one"):
        chosen_scheduler(_model(folder, **{"class": "DDIMScheduler"}), folder)
    solver = {"class": "DPMSolverMultistepScheduler"}
    with pytest.raises(UserError, match=r"add model.scheduler.use_flow_sigmas=true"):
        chosen_scheduler(_model(folder, **solver), folder)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    assert chosen_scheduler(_model(folder, **solver, **flow), folder).config.use_flow_sigmas
    stochastic = chosen_scheduler(_model(folder, stochastic_sampling=True), folder)
    assert (stochastic.config.stochastic_sampling, stochastic.config.shift) == (True, 3.0)


def test_the_models_own_scheduler_is_looked_at_too(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "DPMSolverSDEScheduler")
    with pytest.raises(UserError, match="one path for the whole batch"):
        chosen_scheduler(_model(folder), folder)


STOCHASTIC = {
    "tiny_unet": (
        {"class": "DDPMScheduler"},
        {"class": "EulerAncestralDiscreteScheduler"},
        {"class": "KDPM2AncestralDiscreteScheduler"},
        {"class": "LCMScheduler"},
        {"class": "TCDScheduler"},
        {"class": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
    ),
    "tiny_mmdit": ({"stochastic_sampling": True}, {"class": "FlowMatchLCMScheduler"}),
}
CASES = [(name, given) for name, listed in STOCHASTIC.items() for given in listed]


@pytest.mark.parametrize(("name", "scheduler"), CASES, ids=[str(case) for case in CASES])
def test_every_steps_noise_is_the_prompts_own(
    zoo: Path, name: str, scheduler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batch, and whatever has been drawn before: so it is the same for each method."""
    words = ["model=folder", f"model.path={zoo / name}", "model.num_inference_steps=4"]
    model = build_cell([*words, "model.height=16", "model.width=16"], method_name="x").model
    model.scheduler = scheduler
    model.call = {"eta": 0.3} if name == "tiny_unet" else {"max_sequence_length": 24}
    pipeline = load_pipeline(model, device=torch.device("cpu"))

    def latents(prompts: list[Prompt]) -> Any:
        made = sample(pipeline, prompts, config=model, seed=0, output_type="latent")
        return np.asarray(made, np.float32)

    together = latents(PROMPTS)
    torch.manual_seed(5)
    alone = np.concatenate([latents([prompt]) for prompt in PROMPTS])
    assert np.abs(together - alone).max() < 1e-2 * np.abs(together).max()
    assert np.array_equal(latents(PROMPTS), together)
    module = type(pipeline.scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda shape, **_: torch.zeros(shape))
    without = latents(PROMPTS)
    assert np.abs(without - together).mean() > 1e-2 * np.abs(together).mean()  # there is noise
