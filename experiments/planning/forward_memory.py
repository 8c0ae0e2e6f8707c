"""What a forward takes beside weights: the most bytes of tensors that live at once.

The forward runs on the meta device, where a tensor has a size and no memory; every operation's
results are counted as long as somebody holds them. Attention is counted as the fused kernels do it,
which never hold its matrix of scores.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


def forward_bytes(denoiser: nn.Module, inputs: Mapping[str, Any]) -> int:
    """The peak of a forward, inputs included, weights not.

    Args:
        denoiser: on the meta device, of the type that it will run in.
        inputs: arguments of its forward; tensors are moved to the meta device.
    """
    given = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), dict(inputs))
    return live_bytes(lambda: denoiser(**given), known=given, weights=denoiser)


def live_bytes(
    call: Callable[[], object], *, known: object = (), weights: nn.Module | None = None
) -> int:
    """The most bytes that tensors made by `call` take at once, and those of `known` all along.

    Args:
        weights: a module whose parameters and buffers are not counted, nor views of them.
    """
    live = _Live()
    if weights is not None:
        live.leave_out([*weights.parameters(), *weights.buffers()])
    for leaf in tree_leaves(known):
        if isinstance(leaf, Tensor):
            live.see(leaf)
    with torch.no_grad(), _FusedAttention(), live:
        call()
    return live.peak


class _Live(TorchDispatchMode):
    """Counts storages from when they are made to when they die."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._left_out: set[int] = set()
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.see(leaf)
        return result

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        self._left_out |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._left_out:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention is its output alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, value = (
                args[at] if len(args) > at else given[name]
                for at, name in ((0, "query"), (2, "value"))
            )
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **given)
