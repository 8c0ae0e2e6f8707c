import math

import pytest
import torch

from evaluation.metrics.step_error import (
    step_error,
    step_error_metrics,
    step_errors,
)


def outputs(count: int = 6, steps: int = 4) -> torch.Tensor:
    return torch.randn((count, steps, 3, 5), generator=torch.Generator().manual_seed(0))


def test_identical_outputs_have_no_error() -> None:
    reference = outputs()
    errors = step_errors(reference, reference=reference.clone())
    assert errors.shape == (6, 4)
    assert torch.equal(errors, torch.zeros_like(errors))
    metrics = step_error_metrics(errors, seed=0, resamples=50)
    assert metrics["step_error"].value == 0.0
    assert metrics["step_error"].interval == [0.0, 0.0]
    assert metrics["step_snr_db"].value == math.inf


def test_closed_form() -> None:
    reference = outputs()
    errors = step_errors(1.1 * reference, reference=reference)
    assert errors.flatten().tolist() == pytest.approx([0.01] * 24, rel=1e-4)
    metrics = step_error_metrics(errors, seed=0, resamples=50)
    assert metrics["step_snr_db"].value == pytest.approx(20.0, abs=1e-3)


def test_one_step_at_a_time_is_the_same() -> None:
    reference = outputs()
    noisy = reference + 0.1 * torch.randn(
        reference.shape, generator=torch.Generator().manual_seed(1)
    )
    together = step_errors(noisy, reference=reference)
    apart = [step_error(noisy[:, t], reference=reference[:, t]) for t in range(4)]
    assert torch.equal(together, torch.stack(apart, dim=1))


def test_each_prompt_counts_alike_and_steps_are_named() -> None:
    errors = torch.tensor([[0.1, 0.3], [0.5, 0.7]])
    metrics = step_error_metrics(errors, seed=0, resamples=200)
    values = {name: metric.value for name, metric in metrics.items()}
    assert values["step_error"] == pytest.approx(0.4)
    assert values["step_error_first"] == pytest.approx(0.3)
    assert values["step_error_last"] == pytest.approx(0.5)
    assert metrics["step_error"].n == 2
    low, high = metrics["step_snr_db"].interval or []
    assert low < (metrics["step_snr_db"].value or 0) < high
    assert high == math.inf  # two prompts: the interval of the error holds 0


def test_zero_reference() -> None:
    zero = torch.zeros((1, 3))
    assert step_error(zero, reference=zero).tolist() == [0.0]
    assert step_error(zero + 1, reference=zero).tolist() == [math.inf]


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        step_error(torch.zeros((2, 3)), reference=torch.zeros((2, 4)))
    with pytest.raises(ValueError, match="prompts, steps"):
        step_error_metrics(torch.zeros(3), seed=0)
