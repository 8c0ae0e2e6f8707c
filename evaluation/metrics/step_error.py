"""Teacher-forced error: the denoiser's output, step by step, on the reference's own trajectory.

Every step gets the reference's latents as input, so the errors of earlier steps do not add up:
the number ranks methods with few prompts and without the chaos of a free-running trajectory.

Shapes: N prompts, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.metrics.metric_inputs import Inputs
from evaluation.metrics.metric_interface import MetricBase, Need, Shown
from evaluation.records import Metric, MetricUnavailable
from evaluation.statistics import RESAMPLES, metric_from_values

SHOWN = (
    Shown(
        metric="step_error",
        title="Step error %",
        legend="100 ||q-r||^2/||r||^2 of the denoiser's output on the reference's trajectory, "
        "mean over steps and prompts; lower is better; the noise floor's is of another thread "
        "count alone, in the recorded batches; [95 % interval]",
        scale=100,
        place=80,
    ),
)

ENTRIES_BEGIN = "step_"  # the names of all its entries do; they may be of fewer prompts than images


@dataclass(kw_only=True)
class StepError(MetricBase):
    name = "step_error"
    needs = frozenset({Need.step_errors})
    higher_is_better = False
    columns = ("step_error",)
    place = 50

    def prompt_scores(self, inputs: Inputs) -> Mapping[str, Mapping[str, float]]:
        """The mean over steps of each prompt that was traced."""
        if inputs.step_errors is None:
            return {}
        means_N = _errors(inputs.step_errors).mean(dim=1).tolist()
        known = zip(inputs.step_errors, means_N, strict=True)
        return {"step_error": {name: mean for name, mean in known if math.isfinite(mean)}}

    def measure(self, inputs: Inputs) -> dict[str, Metric]:
        if inputs.step_errors is None:
            raise MetricUnavailable("metrics.teacher_forced_prompts=0")
        errors_NT = _errors(inputs.step_errors)
        lost = int((~torch.isfinite(errors_NT).all(dim=1)).sum())
        if lost:
            raise MetricUnavailable(
                f"the denoiser's output is NaN or infinite for {lost} of {len(errors_NT)} prompts"
            )
        return step_error_metrics(
            errors_NT,
            seed=inputs.settings.seed,
            resamples=inputs.settings.resamples,
        )


METRIC = StepError


def _errors(by_prompt: Mapping[str, Any]) -> torch.Tensor:
    return torch.tensor([list(errors) for errors in by_prompt.values()], dtype=torch.float64)


def step_error(quantized: torch.Tensor, *, reference: torch.Tensor) -> torch.Tensor:
    """Relative squared error ||q - r||^2 / ||r||^2 of one step, for each prompt.

    Args:
        quantized, reference: the denoiser's outputs, shape (N, ...).

    Returns:
        float64 (N,); 0 where both are equal, also when both are zero.
    """
    return _relative_error(quantized, reference=reference, leading=1)


def step_errors(quantized: torch.Tensor, *, reference: torch.Tensor) -> torch.Tensor:
    """As `step_error` for outputs of shape (N, T, ...); returns float64 (N, T)."""
    return _relative_error(quantized, reference=reference, leading=2)


def step_error_metrics(
    errors_NT: Any, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Metric]:
    """Metrics of the per-step errors: mean over steps, then over prompts, with its interval.

    `step_snr_db` is the decibel form of `step_error` (limits of the interval likewise), not a mean
    of decibels, which one exact step would make infinite.
    """
    errors = torch.as_tensor(errors_NT, dtype=torch.float64)
    if errors.ndim != 2 or 0 in errors.shape:
        raise ValueError(f"errors of shape {tuple(errors.shape)}; give (prompts, steps)")
    steps = errors.shape[1]
    columns = {
        "step_error": (errors.mean(dim=1), f"mean over {steps} steps"),
        "step_error_first": (errors[:, 0], "first step"),
        "step_error_last": (errors[:, -1], "last step"),
    }
    metrics = {
        name: metric_from_values(
            values.numpy(),
            higher_is_better=False,
            against="reference",
            seed=seed,
            resamples=resamples,
            note=f"||q-r||^2/||r||^2, teacher-forced, {what}",
        )
        for name, (values, what) in columns.items()
    }
    metrics["step_snr_db"] = _in_decibel(metrics["step_error"])
    return metrics


def _in_decibel(error: Metric) -> Metric:
    interval = None
    if error.interval is not None:
        low, high = error.interval
        interval = [_decibel(high), _decibel(low)]
    assert error.value is not None
    return Metric(
        value=_decibel(error.value),
        higher_is_better=True,
        n=error.n,
        against=error.against,
        interval=interval,
        interval_kind=error.interval_kind,
        note="-10 log10(step_error)",
        unit="dB",
    )


def _decibel(relative_error: float) -> float:
    return math.inf if relative_error <= 0 else -10 * math.log10(relative_error)


def _relative_error(
    quantized: torch.Tensor, *, reference: torch.Tensor, leading: int
) -> torch.Tensor:
    if quantized.shape != reference.shape or quantized.ndim <= leading:
        raise ValueError(
            f"outputs of shape {tuple(quantized.shape)} against {tuple(reference.shape)}; "
            f"give equal shapes with more than {leading} dimensions"
        )
    q = quantized.detach().to(torch.float64).flatten(leading)
    r = reference.detach().to(torch.float64).flatten(leading)
    noise, signal = (q - r).square().sum(dim=-1), r.square().sum(dim=-1)
    return torch.where(noise == 0, torch.zeros_like(noise), noise / signal)
