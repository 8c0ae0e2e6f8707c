"""Balancing factors from saliences per sampling step: what PTQ4DiT, ViDiT-Q and DMQ share.

Legend: S steps, I input features, O output features.
"""

from __future__ import annotations

import torch
from scipy.stats import spearmanr
from torch import Tensor

from segquant.core import Calibration, Element, elements
from segquant.core.smoothing import LARGEST_FACTOR, SMALLEST_FACTOR
from segquant.core.stepwise import LayerSteps


def layer_steps(calibration: Calibration, name: str) -> LayerSteps:
    """What was seen of a layer at each step.

    Raises:
        ValueError: the calibration was made without statistics per step.
    """
    if calibration.steps is None or name not in calibration.steps:
        raise ValueError(
            f"{name}: the calibration has no statistics per step, which this method needs; "
            "calibrate with steps=True"
        )
    return calibration.steps[name]


def balancing_by(name: str) -> Element:
    """An element that the layers with factors have."""
    return Element(name=name, has=elements.scaled, otherwise="no layer has factors")


def safe_factors(factors_I: Tensor, *, alive_I: Tensor) -> Tensor:
    """Factors within bounds; 1 for a channel that is dead in the input or in the weight."""
    factors_I = torch.where(alive_I, factors_I, torch.ones_like(factors_I))
    return factors_I.clamp(SMALLEST_FACTOR, LARGEST_FACTOR)


def power_factors(salience_x_I: Tensor, salience_w_I: Tensor, *, alpha: float) -> Tensor:
    """`s(X)^alpha / s(W)^(1 - alpha)`: the input is divided by it."""
    x_I, w_I = salience_x_I.float(), salience_w_I.float()
    return safe_factors(x_I.pow(alpha) / w_I.pow(1 - alpha), alive_I=(x_I > 0) & (w_I > 0))


def spearman(a_I: Tensor, b_I: Tensor) -> float:
    """Spearman's rank correlation; ties share their mean rank; 0 where one side is constant."""
    if bool((a_I == a_I[0]).all()) or bool((b_I == b_I[0]).all()):
        return 0.0
    return float(spearmanr(a_I.double().numpy(), b_I.double().numpy()).statistic)


def step_weights(amax_SI: Tensor, salience_w_I: Tensor) -> Tensor:
    """PTQ4DiT's eta [S]: a step whose input is less correlated with the weight weighs more."""
    rho = torch.tensor([spearman(amax_I, salience_w_I) for amax_I in amax_SI], dtype=torch.float64)
    return torch.softmax(-rho, 0)
