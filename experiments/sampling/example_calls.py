"""A denoiser's arguments as its pipeline gives them, with one prompt and with two."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from experiments.sampling.pipelines import get_denoiser
from experiments.sampling.sample import sample
from segquant.graph import capture_example_inputs

if TYPE_CHECKING:
    from evaluation.datasets.interface import Prompt
    from experiments.config.run_config import ModelConfig


def example_calls(pipeline: Any, prompt: Prompt, *, config: ModelConfig) -> list[dict[str, Any]]:
    """The first call for the prompt and, of a pipeline that takes several, for it twice.

    What differs in size between the two is the batch.
    """
    denoiser = get_denoiser(pipeline, config.denoisers)
    calls = []
    for prompts in ([prompt], [prompt, prompt]):
        call = partial(sample, pipeline, prompts, config=config, seed=0, output_type="latent")
        try:
            calls.append(capture_example_inputs(denoiser, call))
        except (TypeError, ValueError):
            if not calls:
                raise
    return calls
