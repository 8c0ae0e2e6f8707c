"""torch.compile on a denoiser, in place, and the way back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

COMPILERS = ("c++", "g++", "clang++")


def why_not_compiled(device: torch.device) -> str:
    """On a CPU torch.compile writes C++; empty where it can."""
    if device.type != "cpu" or os.environ.get("CXX"):
        return ""
    if any(map(shutil.which, COMPILERS)):
        return ""
    return f"torch.compile on a CPU needs a C++ compiler (none of {', '.join(COMPILERS)}, no CXX)"


def compile_denoiser(model: Any) -> None:
    """Block by block where diffusers knows the repeated ones: one compilation serves them all."""
    repeated: Callable[..., None] | None = getattr(model, "compile_repeated_blocks", None)
    if repeated is not None and getattr(model, "_repeated_blocks", None):
        repeated(fullgraph=True, dynamic=False)
    else:
        model.compile(dynamic=False)


def uncompile(model: nn.Module) -> None:
    """Eager again; what was compiled is forgotten."""
    for module in model.modules():
        module._compiled_call_impl = None
    torch._dynamo.reset()
