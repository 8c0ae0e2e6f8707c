"""Which Linears of a denoiser are quantized: what all else stands on, and what needs no more."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TypeGuard

import torch
from torch import Tensor, nn

# sums of a million squares stay in float32
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


_KEPT = "_kept_because"  # on a module that no method may touch: why


def linear_layers(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The denoiser's plain Linears by name, in module order: no subclass, weights in floats.

    Those that `keep_out` has marked are none: nothing is recorded of them, and nothing is done.
    """
    return {n: m for n, m in denoiser.named_modules() if _plain(m) and kept_because(m) is None}


def keep_out(denoiser: nn.Module, reasons: Mapping[str, str]) -> dict[str, int]:
    """Marks layers that no method may touch.

    Args:
        reasons: a pattern of names, as fnmatch has it -> why these layers stay as they are. The
            first pattern that names a layer gives its reason; one of a module is of all within it.

    Returns:
        Per pattern the number of Linears that it marks, 0 where it names none.
    """
    marked = dict.fromkeys(reasons, 0)
    for name, module in denoiser.named_modules():
        if not _plain(module) or kept_because(module) is not None:
            continue
        for pattern, reason in reasons.items():
            if any(fnmatchcase(part, pattern) for part in _with_parents(name)):
                setattr(module, _KEPT, f"model.keep: {pattern} ({reason})")
                marked[pattern] += 1
                break
    return marked


def kept_because(module: nn.Module) -> str | None:
    """Why no method may touch a module; None if they may."""
    reason = module.__dict__.get(_KEPT)
    return reason if isinstance(reason, str) else None


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    weight = module._parameters.get("weight")  # none of its own: computed at every call
    return weight is not None and type(weight.data) is Tensor and weight.dtype in _FLOATS
