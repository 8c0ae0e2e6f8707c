"""How far two outputs are from each other, and the yardstick: an input that is moved a little.

A value on the border of two codes goes to the other one with the last bit of a sum, here as in
another runtime, so that what a millionth of the input does is what no runtime can be held to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NUDGE = 1e-6
_STATES = 2  # dimensions from which on an argument is one of states, and no timestep or scale


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||, in float64."""
    exact = wanted.double()
    return float((found.double() - exact).norm() / exact.norm())


def nudge(call: Mapping[str, Any], *, generator: torch.Generator) -> dict[str, Any]:
    """A call's arguments, nested ones too; floats of two dimensions or more are moved."""

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return nudge(value, generator=generator)
        states = isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= _STATES
        return (
            value * (1 + NUDGE * torch.randn(value.shape, generator=generator)) if states else value
        )

    return {name: moved(value) for name, value in call.items()}
