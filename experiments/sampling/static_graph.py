"""What torch.export says of a pipeline's denoiser, from one call as the pipeline makes it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.sampling.pipelines import get_denoiser
from experiments.sampling.sample import sample
from segquant.graph import LayerGraph, analyze_calls, capture_calls, capture_example_inputs

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig


def example_inputs(pipeline: Any, prompt: Prompt, *, config: ModelConfig) -> dict[str, Any]:
    """The arguments of the only denoiser's first call, as the pipeline gives them."""
    call = partial(_call, pipeline, prompt, config=config)
    return capture_example_inputs(get_denoiser(pipeline), call)


def graph_of(pipeline: Any, prompt: Prompt, *, config: ModelConfig) -> LayerGraph:
    """The static graph's word on every layer; where it cannot be read, `error` says why."""
    denoiser = get_denoiser(pipeline, config.denoisers)
    calls = capture_calls(denoiser, partial(_call, pipeline, prompt, config=config))
    return analyze_calls(denoiser, calls, on_error="unsegmented")


def _call(pipeline: Any, prompt: Prompt, *, config: ModelConfig) -> Any:
    return sample(pipeline, [prompt], config=config, seed=0, output_type="latent")
