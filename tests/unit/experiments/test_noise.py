"""Each prompt has its own noise, whatever its batch, unless a published protocol is replayed."""

from pathlib import Path
from typing import Any

import torch

from evaluation.datasets.interface import Prompt
from experiments.config.compose import build, compose_config
from experiments.sampling.pipelines import get_denoiser, load_pipeline
from experiments.sampling.sample import sample


def first_latents(zoo: Path, *, shared_noise: bool) -> torch.Tensor:
    line = [f"model.path={zoo / 'tiny_mmdit'}", "model.height=16", "model.width=16"]
    config = build(compose_config([*line, "model.num_inference_steps=1"]), method_name="rtn").model
    config.call = {"max_sequence_length": 24}
    config.guidance_scale = 1.0
    pipeline = load_pipeline(config, device=torch.device("cpu"))
    seen: list[torch.Tensor] = []

    def look(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["hidden_states"].clone())

    handle = get_denoiser(pipeline).register_forward_pre_hook(look, with_kwargs=True)
    prompts = [Prompt(id="a", text="a red circle"), Prompt(id="b", text="a blue square")]
    sample(
        pipeline, prompts, config=config, seed=0, shared_noise=shared_noise, output_type="latent"
    )
    handle.remove()
    return seen[0][:2]


def test_noise_is_shared_only_on_request(zoo: Path) -> None:
    own, shared = (first_latents(zoo, shared_noise=s) for s in (False, True))
    assert not torch.equal(own[0], own[1])
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(own[0], shared[0])
