"""What may run in a pipeline: a name for it, the code that it is, and it in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from segquant.core.method_interface import QuantizationReport


@dataclass(kw_only=True)
class KernelUse:
    """What of a quantized denoiser runs as products of codes; empty where all is simulated."""

    any: bool = False
    by_layer_class: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class LoadedDenoiser:
    """A denoiser in memory, and what is to be said of it."""

    module: nn.Module | None  # None: the pipeline's own
    report: QuantizationReport | None  # None: unquantized
    execution: str
    kernels: KernelUse = field(default_factory=KernelUse)
    sampling: Callable[[Any], AbstractContextManager[None]] = lambda pipeline: nullcontext()


class Denoiser(Protocol):
    """One of `*_denoiser.py`; each imports what it runs: keys hold that code and no other."""

    @property
    def name(self) -> str:
        """What images and step errors are filed under: all that decides it, but for `code`."""
        ...

    def code(self) -> tuple[str, ...]:
        """The modules that run it."""
        ...

    def load(self) -> LoadedDenoiser: ...
