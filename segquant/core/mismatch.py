"""How the inputs of a partly quantized denoiser's layers differ from the unquantized one's.

Per layer M = (X - X~)^T X~, X the unquantized denoiser's input and X~ the quantized one's, over
the same rows: with H = X~^T X~ all that the least squares problem min ||X W^T - X~ Q^T||^2 needs to
know of the two. Recorded as a difference, since X^T X~ and H are far larger and nearly equal.

Both denoisers run on each call, the unquantized one first.

Legend: T rows, I input features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from segquant.core.plain_linears import linear_layers
from segquant.core.several import called_parts

OPEN_PRODUCTS = 4  # of which another layer's may still turn out to be the same


class MismatchRecorder:
    """Records M while the quantized denoiser runs inside the `with` block.

    Args:
        denoiser: quantized in part; the layers given are still Linears.
        unquantized: the same as it was before.
        layers: names to record.
    """

    def __init__(
        self, denoiser: nn.Module, unquantized: nn.Module, *, layers: Iterable[str]
    ) -> None:
        self._denoiser, self._unquantized = denoiser, unquantized
        self._layers = tuple(layers)
        self._waiting: dict[str, deque[Tensor]] = {name: deque() for name in self._layers}
        self._open: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        twins = called_parts(self._unquantized)
        for name, part in called_parts(self._denoiser).items():
            ahead = partial(_run, twins[name])
            self._hooks.append(part.register_forward_pre_hook(ahead, with_kwargs=True))
        exact, partly = linear_layers(self._unquantized), linear_layers(self._denoiser)
        for name in self._layers:
            for linear, see in ((exact[name], self._see), (partly[name], self._compare)):
                hook = partial(see, name)
                self._hooks.append(linear.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self._open.clear()
        uneven = [name for name, inputs in self._waiting.items() if inputs]
        assert kind is not None or not uneven, "both denoisers call a layer equally often"

    def mismatches(self) -> dict[str, Tensor]:
        """M of each layer that was called, float32 on the CPU."""
        return {name: total.cpu() for name, total in self._sums.items()}

    def _see(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._waiting[name].append(args[0] if args else kwargs["input"])

    @torch.no_grad()
    def _compare(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        x, exact = args[0] if args else kwargs["input"], self._waiting[name].popleft()
        product_II = self._product(exact, x)
        total_II = self._sums.get(name)
        self._sums[name] = product_II if total_II is None else total_II + product_II

    def _product(self, exact: Tensor, x: Tensor) -> Tensor:
        for one, other, product_II in self._open:
            if one is exact and other is x:
                return product_II
        x_TI = x.detach().reshape(-1, x.shape[-1]).float()
        exact_TI = exact.detach().reshape(x_TI.shape).float()
        product_II = (exact_TI - x_TI).T @ x_TI
        self._open = [*self._open, (exact, x, product_II)][-OPEN_PRODUCTS:]
        return product_II


def _run(part: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with torch.no_grad():
        part(*args, **kwargs)
