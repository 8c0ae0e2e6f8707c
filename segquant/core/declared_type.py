"""A type to be asked for: models take a part's from its first parameter.

Wan's embedder of the timestep, and others, call `next(module.parameters()).dtype`; layers that
hold codes in buffers have no parameter to answer with. What they get is seen through the modules
around them alone: asked itself, such a layer has none, so that offloading hooks look for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

DECLARED = "declared_type"


class TypeDeclared(nn.Module):
    """A layer whose only parameter is the one without elements."""

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())


def declare_type(module: TypeDeclared, dtype: torch.dtype, *, device: torch.device | str) -> None:
    """Gives a module a parameter without elements; no state dict has it, and none need have it."""
    empty = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
    if DECLARED in module._parameters:
        module._parameters[DECLARED] = empty
        return
    module.register_parameter(DECLARED, empty)
    module.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_put_in)  # type: ignore[no-untyped-call]


def declared_type(module: nn.Module) -> nn.Parameter:
    """The parameter without elements: its type and device are the module's."""
    declared = module._parameters[DECLARED]
    assert declared is not None
    return declared


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    state.pop(prefix + DECLARED, None)


def _put_in(
    module: nn.Module, state: dict[str, Any], prefix: str, local: Any, *rest: object
) -> None:
    state[prefix + DECLARED] = module._parameters[DECLARED]
