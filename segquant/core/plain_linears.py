"""Which Linears of a denoiser are quantized: what all else stands on, and what needs no more."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

# sums of a million squares stay in float32
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def linear_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The denoiser's plain Linears by name, in module order: no subclass, weights in floats."""
    return {name: m for name, m in denoiser.named_modules() if _plain(m)}


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    weight = module._parameters.get("weight")  # none of its own: computed at every call
    return weight is not None and type(weight.data) is Tensor and weight.dtype in _FLOATS
