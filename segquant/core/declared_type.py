"""A type to be asked for: models take a part's from its first parameter.

Wan's embedder of the timestep, and others, call `next(module.parameters()).dtype`; layers that
hold codes in buffers have no parameter to answer with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_NAME = "declared_type"


def declare_type(module: nn.Module, dtype: torch.dtype, *, device: torch.device | str) -> None:
    """Gives a module a parameter without elements; no state dict has it, and none need have it."""
    empty = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
    if _NAME in module._parameters:
        module._parameters[_NAME] = empty
        return
    module.register_parameter(_NAME, empty)
    module.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_put_in)  # type: ignore[no-untyped-call]


def declared_type(module: nn.Module) -> nn.Parameter:
    """The parameter without elements: its type and device are the module's."""
    declared = module._parameters[_NAME]
    assert declared is not None
    return declared


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    state.pop(prefix + _NAME, None)


def _put_in(
    module: nn.Module, state: dict[str, Any], prefix: str, local: Any, *rest: object
) -> None:
    state[prefix + _NAME] = module._parameters[_NAME]
