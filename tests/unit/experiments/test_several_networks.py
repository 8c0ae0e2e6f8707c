"""Two transformers of one pipeline, the second for later steps: found, set, recorded, replayed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.rtn import RoundToNearest
from evaluation.datasets.interface import Prompt
from experiments.config.run_config import ModelConfig
from experiments.errors import UserError
from experiments.sampling.model_folder import denoisers_left_out, denoisers_of
from experiments.sampling.model_shapes import keep_layers
from experiments.sampling.pipelines import denoiser_names, get_denoiser, set_denoiser
from experiments.sampling.static_graph import graph_of
from experiments.sampling.trajectory import record_trajectory, replay_errors, replay_of
from segquant.core.calibration import Calibration
from segquant.core.input_statistics import StatisticsRecorder
from segquant.core.plain_linears import kept_because, linear_layers
from segquant.core.several import Denoisers
from tests.unit.core.helpers import bits

MODEL = ModelConfig(
    path="two",
    revision=None,
    dtype="float32",
    height=None,
    width=None,
    num_inference_steps=4,
    guidance_scale=None,
    batch_size=2,
)
LAST_BITS = 1e-12  # tensors read from a file lie elsewhere in memory
PROMPTS = [Prompt(id=f"p{number}", text=str(number)) for number in range(3)]


class Part(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.proj_in, self.proj_out = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor]:
        return (self.proj_out(torch.nn.functional.silu(self.proj_in(x))) * timestep[:, None],)


@dataclass
class TwoStages:
    """As Wan 2.2 does it: `transformer` at high noise, `transformer_2` at low."""

    transformer: nn.Module
    transformer_2: nn.Module | None
    vae: nn.Module

    def __post_init__(self) -> None:
        self.scheduler = SimpleNamespace(step=lambda x: x)

    @property
    def components(self) -> dict[str, Any]:
        names = ("transformer_2", "vae", "scheduler", "transformer")
        return {name: getattr(self, name) for name in names}

    def register_modules(self, **modules: nn.Module) -> None:
        for name, module in modules.items():
            setattr(self, name, module)

    def __call__(
        self,
        prompt: list[str],
        generator: list[torch.Generator],
        num_inference_steps: int,
        **_: Any,
    ) -> Any:
        x = torch.stack([torch.randn(4, generator=own) for own in generator])
        for number in range(num_inference_steps):
            part = self.transformer if number < 3 else self.transformer_2
            assert part is not None
            step = torch.full((len(prompt),), 1.0 - number / num_inference_steps)
            x = x - 0.1 * part(x, timestep=step)[0]
        return SimpleNamespace(images=x)


def pipeline() -> TwoStages:
    return TwoStages(transformer=Part(0), transformer_2=Part(1), vae=nn.Linear(1, 1))


def quantized(whole: nn.Module, pipe: TwoStages, *, keep: list[str]) -> None:
    with torch.no_grad(), StatisticsRecorder(whole, gram=False) as recorder:
        pipe(["a"], [torch.Generator().manual_seed(0)], 4)
    calibration = Calibration(statistics=recorder.statistics(), forwards=4)
    RoundToNearest().quantize(whole, calibration=calibration, bits=bits(4, 8, keep=keep))


def test_every_transformer_is_found() -> None:
    pipe = pipeline()
    whole = get_denoiser(pipe)
    assert isinstance(whole, Denoisers)
    assert list(whole) == ["transformer", "transformer_2"]
    assert whole["transformer_2"] is pipe.transformer_2
    assert get_denoiser(pipe, ["transformer_2"]) is pipe.transformer_2
    pipe.transformer_2 = None
    assert get_denoiser(pipe) is pipe.transformer
    assert denoiser_names(pipe) == ["transformer"]
    for name in ("transformer_2", "scheduler", "prior"):
        with pytest.raises(UserError, match=f"no network {name}"):
            get_denoiser(pipe, [name])


def test_each_is_put_where_it_was() -> None:
    pipe, other = pipeline(), pipeline()
    own = get_denoiser(pipe)
    set_denoiser(pipe, get_denoiser(other))
    assert pipe.transformer is other.transformer
    assert pipe.transformer_2 is other.transformer_2
    set_denoiser(pipe, own)
    assert pipe.transformer is not other.transformer
    set_denoiser(pipe, Part(9), ["transformer_2"])
    assert pipe.transformer is get_denoiser(pipe, ["transformer"])
    assert pipe.transformer_2 is not other.transformer_2


def test_errors_come_in_the_order_of_the_calls(tmp_path: Path) -> None:
    pipe = pipeline()
    notes = record_trajectory(pipe, PROMPTS, tmp_path, config=MODEL, seed=0)
    whole = get_denoiser(pipe)
    exact = replay_errors(whole, tmp_path, notes)
    assert exact.shape == (3, 4)
    assert float(exact.max()) < LAST_BITS
    quantized(whole, pipe, keep=["transformer.*"])
    errors_NT = replay_errors(whole, tmp_path, notes)
    assert float(errors_NT[:, :3].max()) < LAST_BITS
    assert float(errors_NT[:, 3].min()) > 1e-6


def test_a_call_that_says_nothing_has_no_error(tmp_path: Path) -> None:
    """A ControlNet beyond its last step gives zeros; it was 0/0."""
    pipe = pipeline()
    nn.init.zeros_(pipe.transformer.get_submodule("proj_out").weight)
    nn.init.zeros_(pipe.transformer.get_submodule("proj_out").bias)
    notes = record_trajectory(pipe, PROMPTS, tmp_path, config=MODEL, seed=0)
    assert float(replay_errors(get_denoiser(pipe), tmp_path, notes).max()) < LAST_BITS


def test_one_denoiser_s_calls_say_no_name(tmp_path: Path) -> None:
    config = replace(MODEL, denoisers=["transformer_2"])
    notes = record_trajectory(pipeline(), PROMPTS, tmp_path, config=config, seed=0)
    (first, _) = notes["batches"]
    assert [sorted(call["dict"]) for call in first["calls"]] == [["timestep", "x"]]


def test_a_replay_of_the_first_call_is_of_each(tmp_path: Path) -> None:
    pipe = pipeline()
    notes = record_trajectory(pipe, PROMPTS, tmp_path, config=MODEL, seed=0)
    whole, replay = get_denoiser(pipe), replay_of(tmp_path, notes)
    for calls, rows in ((1, (2, 2)), (2, (4, 3)), (None, (9, 3))):
        with StatisticsRecorder(whole, gram=False) as recorder:
            replay(whole, calls=calls)
        seen = recorder.statistics()
        found = (seen["transformer.proj_in"].rows, seen["transformer_2.proj_in"].rows)
        assert found == rows


def test_the_graph_of_both_is_read() -> None:
    graph = graph_of(pipeline(), PROMPTS[0], config=MODEL)
    for part in ("transformer", "transformer_2"):
        assert graph[f"{part}.proj_out"].input_segments[0].one_sided
    few = graph_of(pipeline(), PROMPTS[0], config=replace(MODEL, num_inference_steps=2))
    assert few["transformer.proj_out"].calls == 1
    assert few["transformer_2.proj_out"].calls == 0
    assert not few.error


def test_a_pattern_holds_in_each_and_by_its_whole_name() -> None:
    whole = get_denoiser(pipeline())
    keep = {"proj_in": "why", "transformer_2.proj_out": "how"}
    keep_layers(whole, replace(MODEL, keep=keep))
    assert list(linear_layers(whole)) == ["transformer.proj_out"]
    assert kept_because(whole.get_submodule("transformer_2.proj_out")) is not None
    with pytest.raises(UserError, match="transformer_3"):
        keep_layers(whole, replace(MODEL, keep={"transformer_3.*": "why"}))


INDEX = {
    "_class_name": "APipeline",
    "transformer_2": ["diffusers", "A"],
    "transformer": ["diffusers", "A"],
    "unet": [None, None],
    "controlnet": ["diffusers", "AControlNet"],
    "prior_prior": ["diffusers", "APrior"],
    "prior_text_encoder": ["transformers", "T"],
    "vae": ["diffusers", "V"],
    "boundary_ratio": 0.9,
}


@pytest.mark.parametrize(
    ("asked", "chosen", "left_out"),
    [
        (None, ["transformer", "transformer_2"], ["controlnet", "prior_prior"]),
        (["controlnet", "transformer"], ["controlnet", "transformer"], None),
        (["prior_prior"], ["prior_prior"], ["transformer_2", "transformer", "controlnet"]),
        (["adapter_unet"], ["adapter_unet"], None),
    ],
)
def test_what_a_folder_has_to_choose_from(
    asked: list[str] | None, chosen: list[str], left_out: list[str] | None
) -> None:
    parts = {"adapter_unet": "elsewhere"} if asked == ["adapter_unet"] else {}
    config = replace(MODEL, denoisers=asked, parts=parts)
    assert denoisers_of(config, INDEX) == chosen
    if left_out is not None:
        assert denoisers_left_out(config, INDEX) == left_out
    with pytest.raises(UserError, match=r"has no unet; it has transformer_2, transformer, contr"):
        denoisers_of(replace(MODEL, denoisers=["unet"]), INDEX)
    with pytest.raises(UserError, match=r"names no transformer or unet; choose from .*prior"):
        denoisers_of(MODEL, {"prior": ["diffusers", "APrior"], "vae": ["diffusers", "V"]})
