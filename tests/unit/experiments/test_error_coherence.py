"""Errors of a denoiser's calls: alike, unlike, and outputs that are shrunk."""

from __future__ import annotations

import pytest
import torch

from experiments.paper.error_coherence import summed
from tests.unit.core.helpers import generator

CALLS, PROMPTS, FEATURES = 6, 2, 50


def test_errors_that_are_alike_add_up_and_others_do_not() -> None:
    exact = torch.randn(CALLS, PROMPTS, FEATURES, generator=generator(0)).double()
    alike = torch.randn(1, PROMPTS, FEATURES, generator=generator(1)).double().expand_as(exact)
    for row in summed(exact + 0.1 * alike, exact):
        assert row["coherence"] == pytest.approx(CALLS)
    apart = torch.zeros_like(exact)
    for call in range(CALLS):
        apart[call, :, call] = 1.0  # orthogonal
    for row in summed(exact + 0.1 * apart, exact):
        assert row["coherence"] == pytest.approx(1)
    assert [row["coherence"] for row in summed(exact, exact)] == [0, 0]


def test_a_shrunk_output_is_said_by_its_gain() -> None:
    exact = torch.randn(CALLS, PROMPTS, FEATURES, generator=generator(0)).double()
    for row in summed(0.9 * exact, exact):
        assert row["gain"] == pytest.approx(0.9)
        assert (row["error"], row["drift"]) == (pytest.approx(0.01), pytest.approx(0.01))


def test_each_prompt_is_as_numpy_says() -> None:
    exact = torch.randn(CALLS, PROMPTS, FEATURES, generator=generator(0)).double()
    given = exact + 0.3 * torch.randn(exact.shape, generator=generator(1)).double()
    r, q = exact.numpy()[:, 1], given.numpy()[:, 1]
    row = summed(given, exact)[1]
    power = (r**2).sum(1)
    assert row["error"] == pytest.approx((((q - r) ** 2).sum(1) / power).mean())
    assert row["gain"] == pytest.approx(((q * r).sum(1) / power).mean())
    assert row["coherence"] == pytest.approx((((q - r).sum(0)) ** 2).sum() / ((q - r) ** 2).sum())
    assert row["drift"] == pytest.approx(((q - r).sum(0) ** 2).sum() / (r.sum(0) ** 2).sum())
